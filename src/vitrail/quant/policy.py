"""Which module of a model gets which format, and why. Packs nothing.

In Vitrail's own formats linear layers of the decoder get the format that was asked for; the head and the table of
embeddings, of which every answer's every word depends, 8 bits; the tower and the projector, which are a small part of
the weights and see every image, 8 bits. bitsandbytes' formats are chosen as that library chooses.
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
    """What becomes of a module's weight: its format, its group, and a reason if not the usual."""

    part: str  # "vision tower", "projector", "embeddings", "language model" or "head"
    format: WeightFormat
    group: int = 0
    why: str = ""

    @property
    def packs(self) -> bool:
        """Whether the weight is packed."""
        return self.format.packs


def choose(model: nn.Module, config: Quantization, tied: Iterable[str] = ()) -> dict[str, Choice]:
    """The path of every linear layer and embedding of `model`, as it was built → what becomes of it.

    `tied`: paths of a head and of the table that are one tensor. Own formats leave the head out, for it is the table;
    bitsandbytes leaves both as they are, as do formats that are only read, of which all linear layers but the head are
    expected. InputError for a pattern of `keep` that fits no module.
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
    """Of `choose` those that are packed."""
    return {path: choice for path, choice in choose(model, config, tied).items() if choice.packs}


def nf4_config(
    model: nn.Module, *, vision: bool, keep: Sequence[str], dtype: str = "bfloat16"
) -> BitsAndBytesConfig:
    """bitsandbytes' NF4 with tower and projector in it or not, and `keep` as in a QuantizeConfig; products in `dtype`."""
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
    """Path, part and module of everything that may be packed."""
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
    """The modules of these names in a format, all others plain; a tied head is the table's."""
    found = {}
    for path, part, module in _matrices(model):
        if part == "head" and path in tied:
            continue
        group = format.group(module.weight.shape[1], 0) if path in names else None
        found[path] = Choice(part, BF16) if group is None else Choice(part, format, group)
    return found


def quantized_names(model: nn.Module, config: BitsAndBytesConfig, tied: Iterable[str] = ()) -> set[str]:
    """The paths of the Linear layers that `config` quantises, chosen as transformers 4.57 chooses them.

    Without llm_int8_skip_modules every one but lm_head; with it, every one that is not listed by its last
    name, its whole path, or the path of a module that holds it. `tied` are paths that share the embedding's
    tensor; they always stay.
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
    """Whether a pattern names a module: by its path, its last name, or the path of one that holds it."""
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
