"""MistralCheckpoint: files in Mistral's own format with canonical names and Hugging Face's row order."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from vitrail.configs.params import read_params
from vitrail.errors import CheckpointError, UnsupportedError
from vitrail.files.formatting import listed
from vitrail.files.layout import PARAMS_NAME
from vitrail.files.safetensors import TensorSpec
from vitrail.ops import memory
from vitrail.weights.mistral_names import from_native, to_native
from vitrail.weights.names import canonical
from vitrail.weights.rotary_rows import Heads, to_halves
from vitrail.weights.safetensors_checkpoint import SafetensorsCheckpoint


class MistralCheckpoint(SafetensorsCheckpoint):
    """The tensors of consolidated*.safetensors under canonical names, as in Hugging Face's format.

    Rows of q and k are reordered to halves when a tensor is read, which copies that tensor. Names outside this family are
    unchanged. Raises UnsupportedError for a quantised (fp8) file, else as SafetensorsCheckpoint.
    """

    config_name = PARAMS_NAME

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder, stem="consolidated")
        config = read_params(self.folder)
        self._kind: str = config["model_type"]
        self.heads = heads_of(config)
        self._native = {from_native(name) or name: name for name in self._where}
        self._refuse_quantised()

    @property
    def kind(self) -> str | None:
        return self._kind

    def names(self) -> list[str]:
        return [from_native(name) or name for name in super().names()]

    def spec(self, name: str) -> TensorSpec:
        return super().spec(self._native[name])

    def tensor(self, name: str) -> Tensor:
        native = self._native[name]
        rows = super().tensor(native)
        heads = self.heads.of(name)
        return rows if heads is None else to_halves(rows, heads, native)

    def copied(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        if self.copies(name):
            return memory.copied(self.tensor(name), device, dtype)
        return super().copied(self._native[name], device, dtype)

    def copies(self, name: str) -> bool:
        return self.heads.of(name) is not None

    def shown(self, name: str) -> str:
        return to_native(canonical(name)) or name

    def _refuse_quantised(self) -> None:
        scales = [name for name in self._where if name.rpartition(".")[2] in ("qscale_weight", "qscale_act")]
        if scales:
            raise UnsupportedError(
                f"{self.folder} holds fp8 weights in Mistral's own format ({len(scales)} scales: {listed(scales, most=3)}), "
                "which this version does not read. Use the model's bf16 checkpoint."
            )


def heads_of(config: dict[str, object]) -> Heads:
    """Return the head counts of q and k from the dict of a config.json (of the whole model or the text model)."""
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise CheckpointError("text_config and vision_config must be objects of keys.")
    return Heads(
        query=text["num_attention_heads"],
        key=text["num_key_value_heads"],
        vision=vision.get("num_attention_heads", 1),
    )
