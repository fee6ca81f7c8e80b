"""Quantisation policy: the format of each module of a model.

In Vitrail's own formats, linear layers of the decoder get the requested format. The LM head and the embedding stay at
8 bits by default: every token depends on them. So do the tower and the projector, a small part of the weights. For
bitsandbytes' formats the choice is bitsandbytes' own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from vitrail.errors import InputError
from vitrail.quant.config import BitsAndBytesConfig, Quantization
from vitrail.quant.formats import FORMATS, WeightFormat
from vitrail.quant.formats.base import StoredConfig
from vitrail.quant.formats.bitsandbytes import NF4, format_of
from vitrail.quant.formats.plain import BF16
from vitrail.quant.quantize_config import QuantizeConfig

_VISION = ("vision_tower", "transformer", "patch_positional_embedding")
_PROJECTOR = "multi_modal_projector"


@dataclass(frozen=True, slots=True)
class Choice:
    """Quantisation of one module's weight: format, group, and a reason if unusual."""

    part: str  # "vision tower", "projector", "embeddings", "language model" or "head"
    format: WeightFormat
    group: int = 0
    why: str = ""

    @property
    def packs(self) -> bool:
        """Whether the weight is packed."""
        return self.format.packs


def choose(model: nn.Module, config: Quantization, tied: Iterable[str] = ()) -> dict[str, Choice]:
    """Map the path of every linear layer and embedding of an unquantised `model` to its quantisation.

    Args:
        model: as built from its configuration.
        config: the requested quantisation.
        tied: paths of a head and an embedding that share one tensor. Vitrail's own formats leave the head out, as it is
            the embedding; bitsandbytes leaves both unquantised, and so do read-only formats, which expect all linear
            layers but the head.

    Raises:
        InputError: a `keep` pattern that matches no module.
    """
    if isinstance(config, BitsAndBytesConfig):
        names = quantized_names(model, config, tied)
        return _linears_in(model, format_of(config), names, tuple(tied))
    if isinstance(config, StoredConfig):
        (format, *_) = (format for format in FORMATS.values() if format.method == config.quant_method)
        names = {
            path
            for path, part, module in _matrices(model)
            if isinstance(module, nn.Linear) and part != "head"
        }
        return _linears_in(model, format, names, tuple(tied))
    _check_patterns(model, config.keep)
    shared = set(tied)
    return {
        path: _own(part, path, module, config)
        for path, part, module in _matrices(model)
        if not (part == "head" and path in shared)
    }


def to_pack(model: nn.Module, config: Quantization, tied: Iterable[str] = ()) -> dict[str, Choice]:
    """Return the entries of `choose` that are packed."""
    return {path: choice for path, choice in choose(model, config, tied).items() if choice.packs}


def nf4_config(
    model: nn.Module, *, vision: bool, keep: Sequence[str], dtype: str = "bfloat16"
) -> BitsAndBytesConfig:
    """Return bitsandbytes' NF4 with or without tower and projector, `keep` as in QuantizeConfig; products in `dtype`."""
    _check_patterns(model, keep)
    skip = None
    if keep or not vision:
        matched = [
            path
            for path, _, module in _matrices(model)
            if isinstance(module, nn.Linear) and any(_fits(path, pattern) for pattern in keep)
        ]
        skip = ["lm_head", *([] if vision else ["vision_tower", _PROJECTOR]), *matched]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=NF4.name,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def _matrices(model: nn.Module) -> Iterator[tuple[str, str, nn.Linear | nn.Embedding]]:
    """Yield path, part and module of everything that can be packed."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            yield path, _part(path, module, module is head), module


def _part(path: str, module: nn.Module, is_head: bool) -> str:
    names = path.split(".")
    if is_head:
        return "head"
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if _PROJECTOR in names:
        return "projector"
    return "vision tower" if any(name in names for name in _VISION) else "language model"


def _own(part: str, path: str, module: nn.Linear | nn.Embedding, config: QuantizeConfig) -> Choice:
    wanted = {"head": config.lm_head, "embeddings": config.embeddings, "language model": config.format}
    name = wanted.get(part, config.vision)
    if any(_fits(path, pattern) for pattern in config.keep):
        return Choice(part, BF16, why="kept")
    if name not in FORMATS:
        return Choice(part, BF16)
    columns = module.embedding_dim if isinstance(module, nn.Embedding) else module.in_features
    group = FORMATS[name].group(columns, config.group)
    if group is None:
        return Choice(part, BF16, why=f"no group divides {columns} columns")
    return Choice(
        part,
        FORMATS[name],
        group,
        "" if group == config.group else f"{config.group} does not divide {columns}",
    )


def _linears_in(
    model: nn.Module, format: WeightFormat, names: Container[str], tied: tuple[str, ...]
) -> dict[str, Choice]:
    """Quantise the modules with these names to a format and leave others plain; a tied head follows the embedding."""
    found = {}
    for path, part, module in _matrices(model):
        if part == "head" and path in tied:
            continue
        group = format.group(module.weight.shape[1], 0) if path in names else None
        found[path] = Choice(part, BF16) if group is None else Choice(part, format, group)
    return found


def quantized_names(model: nn.Module, config: BitsAndBytesConfig, tied: Iterable[str] = ()) -> set[str]:
    """Return the paths of the linear layers that `config` quantises, chosen as in transformers 4.57.

    Without llm_int8_skip_modules all but lm_head; with it, all that are not listed by their last name, their whole path,
    or the path of a parent module. `tied` are paths that share the embedding's tensor; they are never quantised.
    """
    if not config.is_quantizable():
        return set()
    skip = ["lm_head"] if config.llm_int8_skip_modules is None else config.llm_int8_skip_modules
    kept = set(tied)
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in kept and not _skipped(name, skip)
    }


def _skipped(name: str, skip: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] == key or name == key or f"{key}." in name for key in skip)


def _fits(path: str, pattern: str) -> bool:
    """Return whether a pattern matches a module's path, its last name, or the path of a parent module."""
    names = path.split(".")
    holders = (".".join(names[:count]) for count in range(1, len(names) + 1))
    return fnmatchcase(names[-1], pattern) or any(fnmatchcase(holder, pattern) for holder in holders)


def _check_patterns(model: nn.Module, keep: Sequence[str]) -> None:
    paths = [path for path, _, _ in _matrices(model)]
    idle = [pattern for pattern in keep if not any(_fits(path, pattern) for path in paths)]
    if idle:
        raise InputError(
            f"keep names what {type(model).__name__} does not have: {', '.join(idle)[:400]}; give names such as "
            f"'down_proj' or '{paths[-1]}', with * for any letters."
        )
