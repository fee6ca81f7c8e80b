"""Which module of a model gets which format, and why. Packs nothing.

In Vitrail's own formats linear layers of the decoder get the format that was asked for; the head and the table of
embeddings, of which every answer's every word depends, 8 bits; the tower and the projector, which are a small part of
the weights and see every picture, 8 bits. bitsandbytes' formats are chosen as that library chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from vitrail.errors import InputError
from vitrail.quant.bitsandbytes import GROUP
from vitrail.quant.config import BitsAndBytesConfig, Quantization
from vitrail.quant.own_config import QuantizeConfig
from vitrail.quant.own_layout import fitting_group
from vitrail.quant.replace import quantized_names

PLAIN = "bf16"  # 16 bits: as in the files, or rounded to bfloat16
_VISION = ("vision_tower", "transformer", "patch_positional_embedding")
_PROJECTOR = "multi_modal_projector"


@dataclass(frozen=True, slots=True)
class Choice:
    """What becomes of a module's weight: its format (PLAIN: it is not packed), its group, and a reason if not the usual."""

    part: str  # "vision tower", "projector", "embeddings", "language model" or "head"
    kind: str
    group: int = 0
    why: str = ""

    @property
    def packs(self) -> bool:
        """Whether the weight is packed."""
        return self.kind != PLAIN


def choose(model: nn.Module, config: Quantization, tied: Iterable[str] = ()) -> dict[str, Choice]:
    """The path of every linear layer and embedding of `model`, as it was built → what becomes of it.

    `tied`: paths of a head and of the table that are one tensor. Own formats leave the head out, for it is the table;
    bitsandbytes leaves both as they are. InputError for a pattern of `keep` that fits no module.
    """
    if isinstance(config, BitsAndBytesConfig):
        return _as_bitsandbytes(model, config, tuple(tied))
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
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=skip
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
    kind = wanted.get(part, config.vision)
    if any(_fits(path, pattern) for pattern in config.keep):
        return Choice(part, PLAIN, why="kept")
    if kind == PLAIN:
        return Choice(part, PLAIN)
    columns = module.embedding_dim if isinstance(module, nn.Embedding) else module.in_features
    group = fitting_group(columns, config.group)
    if group is None:
        return Choice(part, PLAIN, why=f"no group divides {columns} columns")
    return Choice(
        part, kind, group, "" if group == config.group else f"{config.group} does not divide {columns}"
    )


def _as_bitsandbytes(
    model: nn.Module, config: BitsAndBytesConfig, tied: tuple[str, ...]
) -> dict[str, Choice]:
    kind = "int8" if config.load_in_8bit else config.bnb_4bit_quant_type
    packed = quantized_names(model, config, tied)
    found = {}
    for path, part, _ in _matrices(model):
        if not (part == "head" and path in tied):
            found[path] = Choice(part, kind, GROUP) if path in packed else Choice(part, PLAIN)
    return found


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
