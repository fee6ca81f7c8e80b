"""Plan of `vitrail quantize`: format, dtype, shape and shard of each tensor, from headers only."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrail.errors import InputError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.safetensors_writer import Spec
from vitrail.files.writing import check_new
from vitrail.quant.config import BitsAndBytesConfig, Quantization
from vitrail.quant.formats.plain import BF16, PlainFormat
from vitrail.quant.policy import Choice, choose
from vitrail.weights.checkpoint import Checkpoint, open_checkpoint
from vitrail.weights.load import fit_projector_bias, resolve_dtype
from vitrail.weights.names import saved_names
from vitrail.weights.plan import FLOATS, Plan, make_plan, own_tensors
from vitrail.weights.save import in_shards

SHARD_BYTES = 1_000_000_000  # at most this much work is lost by an interruption
OTHER = "norms, biases, convolution"
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the model, and the tensors written for it.

    Attributes:
        name: of the model's tensor.  shape: its shape.  choice: its quantisation.
        saved: key ("weight.codes", …; "" for a tensor that is not packed) → name in the new file.
        specs: name in the new file → dtype and shape.
    """

    name: str
    shape: tuple[int, ...]
    choice: Choice
    saved: Mapping[str, str]
    specs: Mapping[str, Spec]

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the new file."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.specs.values())


@dataclass(frozen=True, slots=True)
class Shard:
    """A file and its tensors."""

    file: str
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(piece.size for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the policy table: modules with the same treatment. `bits` are per weight, scales included."""

    part: str
    kind: str
    group: int
    why: str
    modules: int
    weights: int
    size: int

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return self.size * 8 / max(1, self.weights)

    def as_json(self) -> dict[str, Any]:
        """Return the record printed by `--json`."""
        named = {"part": self.part, "format": self.kind, "group": self.group or None, "why": self.why or None}
        return named | {
            "modules": self.modules,
            "weights": self.weights,
            "bytes": self.size,
            "bits_per_weight": round(self.bits, 4),
        }


@dataclass(frozen=True)
class Work:
    """Everything determined before the first value is read."""

    source: Path
    target: Path
    checkpoint: Checkpoint
    plan: Plan
    model_config: Any
    config: Quantization
    dtype: torch.dtype
    shards: tuple[Shard, ...]
    rows: tuple[Row, ...]

    @property
    def size(self) -> int:
        """Bytes of all tensors to write."""
        return sum(shard.size for shard in self.shards)

    @property
    def weights(self) -> int:
        """Number of weights of the model."""
        return sum(piece.weights for shard in self.shards for piece in shard.pieces)

    @property
    def source_kinds(self) -> list[str]:
        """Formats in which the source is already packed; the report does not include their own errors."""
        return sorted({stored.format.name for stored in self.plan.packed.values()})

    @property
    def scratch(self) -> Path:
        """Folder of the work in progress."""
        return self.target.with_name(f".{self.target.name}.quantizing")


def prepare(
    model: nn.Module,
    source: str | os.PathLike[str],
    target: Path,
    config: Quantization,
    *,
    format: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Work:
    """Plan the quantisation of a checkpoint; reads headers only.

    Args:
        model: of the checkpoint, on the meta device.
        source: folder of the checkpoint.
        target: folder to write.
        config: a QuantizeConfig, or a BitsAndBytesConfig of 4 bits without double quantisation.
        format: "hf" or "mistral" if `source` holds both.
        shard_bytes: maximum bytes of a file's tensors, except for a single larger one.

    Raises:
        CheckpointError: files that do not fit the model.
        InputError: an existing target, or patterns that match nothing.
    """
    _check_target(target)
    folder = CheckpointFolder.at(source, format=format)
    checkpoint = open_checkpoint(folder)
    plan = make_plan(model, checkpoint, None)
    plan.refuse_if_amiss(model, checkpoint)
    fit_projector_bias(model, plan)
    settings: Any = getattr(model, "config", None)
    dtype = _half_type(settings, checkpoint)
    pieces = _pieces(model, checkpoint, plan, config, dtype)
    rows = _table(pieces, plan.tied is not None)
    return Work(
        folder.path,
        target,
        checkpoint,
        plan,
        settings,
        config,
        dtype,
        tuple(_split(pieces, shard_bytes)),
        tuple(rows),
    )


def _check_target(target: Path) -> None:
    check_new(target)
    if target.name in ("", "..") or (target.exists() and target.samefile(Path.cwd())):
        raise InputError(f"{target} is a folder that cannot be replaced by a new one; give another name.")


def _pieces(
    model: nn.Module, checkpoint: Checkpoint, plan: Plan, config: Quantization, dtype: torch.dtype
) -> list[Piece]:
    """Return every tensor of `model` to write, in the model's order; without a tied head.

    `dtype`: 16-bit dtype of what is not packed. Vitrail's own formats leave vectors as in the files, and matrices that
    already have 16 bits.
    """
    choices = choose(model, config, plan.tied or ())
    own, names = own_tensors(model), saved_names(own_tensors(model))
    head = f"{plan.tied[0]}.weight" if plan.tied else None
    pieces = []
    for name, tensor in own.items():
        if name == head:
            continue
        path, _, leaf = name.rpartition(".")
        choice = choices.get(path) if leaf == "weight" else None
        shape = tuple(tensor.shape)
        if choice is not None and choice.packs:
            choice.format.refuse_unless_quantizes()
            found = choice.format.specs((shape[0], shape[1]), choice.group, dtype)
            stem = names[name].removesuffix("weight")
            saved = {part: stem + part for part in found}
            specs = {saved[part]: spec for part, spec in found.items()}
        else:
            type_ = _plain_type(checkpoint, plan, name, dtype, config)
            saved, specs = {"": names[name]}, {names[name]: (type_, shape)}
        pieces.append(Piece(name, shape, choice or Choice(OTHER, _float_format(specs)), saved, specs))
    return pieces


def _split(pieces: list[Piece], limit: int) -> list[Shard]:
    """Divide the tensors into files of at most `limit` bytes, in order; a larger one gets its own file."""
    named = {piece.name: piece for piece in pieces}
    files = in_shards({name: piece.size for name, piece in named.items()}, limit)
    return [Shard(file, tuple(named[name] for name in names)) for file, names in files.items()]


def _table(pieces: list[Piece], tied: bool) -> list[Row]:
    """Return the policy: a row per treatment, in the model's order."""
    groups: dict[tuple[str, str, int, str], list[Piece]] = {}
    for piece in pieces:
        choice = piece.choice
        groups.setdefault((choice.part, choice.format.name, choice.group, choice.why), []).append(piece)
    rows = [
        Row(*key, len(group), sum(p.weights for p in group), sum(p.size for p in group))
        for key, group in groups.items()
    ]
    return [*rows, *([Row("head", "tied", 0, "it is the embeddings' table", 1, 0, 0)] if tied else [])]


def _half_type(config: Any, checkpoint: Checkpoint) -> torch.dtype:
    """Return the 16-bit dtype of what is not packed: the checkpoint's, or bfloat16 for float32."""
    named = resolve_dtype("auto", config, checkpoint)
    return named if named in HALVES else torch.bfloat16


def _plain_type(
    checkpoint: Checkpoint, plan: Plan, name: str, dtype: torch.dtype, config: Quantization
) -> torch.dtype:
    if name not in plan.plain:
        return dtype  # packed in the files
    entry = checkpoint.spec(plan.plain[name])
    if entry.dtype not in FLOATS:
        return entry.dtype
    if isinstance(config, BitsAndBytesConfig):
        return dtype
    as_it_is = (*HALVES, torch.float32) if len(entry.shape) < 2 else HALVES
    return entry.dtype if entry.dtype in as_it_is else dtype


def _float_format(specs: Mapping[str, Spec]) -> PlainFormat:
    (dtype, _), *_ = specs.values()
    return BF16 if dtype == torch.bfloat16 else PlainFormat(str(dtype).removeprefix("torch."))
