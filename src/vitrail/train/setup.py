"""Opening of model, inputs and adapter for a training run, from the names on the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.adapters.config import ALL_LINEAR, LoraConfig
from vitrail.adapters.targets import find_targets, in_parts
from vitrail.auto import AutoConfig, auto_class
from vitrail.errors import InputError
from vitrail.files.hub import resolve
from vitrail.model.pretrained import PreTrainedModel
from vitrail.processor.processor import PixtralProcessor
from vitrail.processor.prompt_view import PromptMaker, maker_of, open_maker
from vitrail.quant.bitsandbytes_config import BitsAndBytesConfig
from vitrail.quant.formats.bitsandbytes import FP4, INT8, NF4
from vitrail.quant.replace import QuantLinear
from vitrail.train.examples import ExampleMaker

QUANTISED = (NF4.name, FP4.name, INT8.name)
LANGUAGE_MODEL = "language_model"
_SAMPLE = 1 << 18  # bytes sampled at both ends of a file


@dataclass(frozen=True)
class Inputs:
    """Input side of a checkpoint. processor: None for a text-only model."""

    maker: PromptMaker
    processor: PixtralProcessor | None

    def examples(self, longest: int, format: str | None = None) -> ExampleMaker:
        """Return a builder of examples with at most `longest` positions."""
        return ExampleMaker(self.maker, longest, format)

    def prepare(self, images: list[Any]) -> dict[str, Tensor]:
        """Convert images to pixel_values (N, 3, H, W), image_sizes (N, 2)."""
        if self.processor is None:
            raise InputError("this model reads text only; the conversations have images.")
        return dict(self.processor(images=images, return_tensors="pt"))


def open_inputs(model: str | Path, *, max_image_tokens: int | None = None) -> Inputs:
    """Open the processor of a checkpoint, or its tokenizer if it is text-only."""
    folder = resolve(model)
    if not AutoConfig.from_pretrained(folder).has_vision:
        return Inputs(open_maker(folder), None)
    processor = PixtralProcessor.from_pretrained(folder)
    if max_image_tokens is not None:
        processor.image_processor.max_image_tokens = max_image_tokens
    return Inputs(maker_of(processor), processor)


def longest_of(model: str | Path) -> int:
    """Return the context length of a checkpoint."""
    config = AutoConfig.from_pretrained(model)
    return int(config.get_text_config().max_position_embeddings)


def fingerprint(model: str | Path) -> str:
    """Return a digest of a checkpoint's weights: name, size, beginning and end of each file."""
    whole = hashlib.sha256()
    for path in sorted(resolve(model).glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as stream:
            whole.update(f"{path.name} {size} ".encode() + stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            whole.update(stream.read(_SAMPLE))
    return whole.hexdigest()


def open_model(
    model: str | Path, *, quantize: str | None = None, dtype: str = "float32", device: str = "auto"
) -> PreTrainedModel:
    """Load the model of a checkpoint, packing its linear layers to `quantize` (one of QUANTISED) if given."""
    kind = auto_class(AutoConfig.from_pretrained(model))
    packing: BitsAndBytesConfig | None = None
    if quantize == INT8.name:
        packing = BitsAndBytesConfig(load_in_8bit=True)
    elif quantize is not None:
        compute = torch.float32 if dtype in ("auto", "float32") else getattr(torch, dtype)
        packing = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=quantize, bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )  # fmt: skip
    loaded: PreTrainedModel = kind.from_pretrained(
        model, dtype=dtype, device_map=device, **({} if packing is None else {"quantization_config": packing})
    )
    return loaded


def make_adapter(
    model: PreTrainedModel, config: LoraConfig, parts: Sequence[str], seed: int, name: str | None = None
) -> list[str]:
    """Add a new adapter to those of its targets that are in `parts`.

    Args:
        model: to adapt.
        config: of the adapter.
        parts: of the model to adapt.
        seed: of the initial values.
        name: of the base model, for the adapter's file.

    Returns:
        Names of the adapted modules.
    """
    targets = in_parts(find_targets(model, config), parts)
    if not targets:
        raise InputError(f"the adapter has no target in {', '.join(parts)}: {config.target_modules!r:.200}.")
    torch.manual_seed(seed)
    chosen = replace(
        config,
        target_modules=targets,
        exclude_modules=None,
        layers_to_transform=None,
        base_model_name_or_path=name,
    )
    return model.add_adapter(chosen)


def lora_config(rank: int, alpha: float | None, targets: Sequence[str], **more: Any) -> LoraConfig:
    """Build a LoraConfig from command-line values: a single target that is not a plain name is a pattern for full names."""
    chosen: list[str] | str = list(targets) or ALL_LINEAR
    if len(targets) == 1 and (
        targets[0] == ALL_LINEAR or not targets[0].replace("_", "").replace(".", "").isalnum()
    ):
        chosen = targets[0]
    return LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=chosen, **more)


def train_parts(model: PreTrainedModel, parts: Sequence[str]) -> None:
    """Make all weights of `parts` trainable, in float32, and freeze the others."""
    if any(isinstance(module, QuantLinear) for module in model.modules()):
        raise InputError("packed weights cannot be trained; leave quantising out, or train an adapter.")
    chosen = set(in_parts([name for name, _ in model.named_parameters()], parts))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            parameter.data = parameter.data.float()
    if not chosen:
        raise InputError(f"{type(model).__name__} has no {', '.join(parts)}.")


def parts_of(model: nn.Module, asked: Sequence[str], *, adapter: bool) -> tuple[str, ...]:
    """Return the parts to train: `asked`; by default the language model for an adapter, everything for full training."""
    if asked:
        return tuple(asked)
    everything = (LANGUAGE_MODEL, "projector", "vision_tower")
    return (LANGUAGE_MODEL,) if adapter or not hasattr(model, "vision_tower") else everything
