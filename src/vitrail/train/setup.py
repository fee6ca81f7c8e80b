"""From names on the command line to a model that is ready to be trained, and to its examples. Trains nothing."""

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
_SAMPLE = 1 << 18  # bytes of a file that are looked at, at either end


@dataclass(frozen=True)
class Inputs:
    """What makes examples of a checkpoint's kind. processor: None for a model that reads text only."""

    maker: PromptMaker
    processor: PixtralProcessor | None

    def examples(self, longest: int, format: str | None = None) -> ExampleMaker:
        """The maker of examples with at most `longest` positions."""
        return ExampleMaker(self.maker, longest, format)

    def prepare(self, images: list[Any]) -> dict[str, Tensor]:
        """Images → pixel_values (N, 3, H, W), image_sizes (N, 2)."""
        if self.processor is None:
            raise InputError("this model reads text only; the conversations have images.")
        return dict(self.processor(images=images, return_tensors="pt"))


def open_inputs(model: str | Path, *, max_image_tokens: int | None = None) -> Inputs:
    """The processor of a checkpoint, or its tokenizer if it reads text only."""
    folder = resolve(model)
    if not AutoConfig.from_pretrained(folder).has_vision:
        return Inputs(open_maker(folder), None)
    processor = PixtralProcessor.from_pretrained(folder)
    if max_image_tokens is not None:
        processor.image_processor.max_image_tokens = max_image_tokens
    return Inputs(maker_of(processor), processor)


def longest_of(model: str | Path) -> int:
    """The positions that a checkpoint's context has."""
    config = AutoConfig.from_pretrained(model)
    return int(config.get_text_config().max_position_embeddings)


def fingerprint(model: str | Path) -> str:
    """A digest that changes with a checkpoint's weights: of name, size, beginning and end of each file."""
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
    """The model of a checkpoint, its Linear layers packed to `quantize` (one of QUANTISED) while loading."""
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
    """Put a fresh adapter on those of its targets that lie in `parts`, and give their names.

    seed: decides its values. name: of the base model, for the adapter's file.
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
    """A LoraConfig of the command line's words: one target that is no plain name is a pattern for whole names."""
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
    """The parts that are trained: those asked for; else the language model for an adapter, everything for all weights."""
    if asked:
        return tuple(asked)
    everything = (LANGUAGE_MODEL, "projector", "vision_tower")
    return (LANGUAGE_MODEL,) if adapter or not hasattr(model, "vision_tower") else everything
