"""Quantisation of a checkpoint on disk, tensor by tensor; atomic, and resumable after an interruption.

Work in progress is in a hidden folder beside the target: a journal, and the new files. Files complete according to the
journal are kept when the same work is run again; the rest is written anew, as by an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail._version import __version__
from vitrail.errors import CheckpointError
from vitrail.files.layout import CONFIG_NAME, PARAMS_NAME
from vitrail.files.safetensors_writer import SafetensorsWriter
from vitrail.files.writing import check_room
from vitrail.ops.encoding import squared_error
from vitrail.ops.weight import dequantize
from vitrail.quant.config import BitsAndBytesConfig
from vitrail.quant.formats import file_layout
from vitrail.quant.policy import Choice
from vitrail.weights.journal import Journal, journal
from vitrail.weights.load import note
from vitrail.weights.quantize_plan import Piece, Shard, Work
from vitrail.weights.safetensors_checkpoint import INDEX
from vitrail.weights.sidecar_files import copy_beside, note_kind, write_image_settings

_CHUNK_ROWS = 512  # rows of a packed matrix decoded at once
_CPU = torch.device("cpu")

Progress = Callable[[str, int, int], None]
"""Called with a tensor's name, the bytes written and total bytes, before each tensor and at the end."""


@dataclass
class Written:
    """Result: per tensor of the model a record with name, format, group, weights, bytes and the two sums of squares of its
    error; and how many files an earlier run had finished."""

    work: Work
    layers: list[dict[str, Any]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    kept_files: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return the report printed by `--json`."""
        work = self.work
        layers = [_public(layer) for layer in self.layers]
        packed = [layer for layer in layers if layer["relative_error"] is not None]
        return {
            "model": str(work.source),
            "source_formats": work.source_kinds,
            "out": str(work.target),
            "quantization_config": work.config.to_dict(),
            "files": self.files,
            "files_kept_of_an_earlier_run": self.kept_files,
            "policy": [row.as_json() for row in work.rows],
            "weights": work.weights,
            "bytes": work.size,
            "bits_per_weight": round(work.size * 8 / max(1, work.weights), 4),
            "relative_error": self.relative_error,
            "worst": sorted(packed, key=lambda layer: -layer["relative_error"])[:5],
            "layers": layers,
        }

    @property
    def relative_error(self) -> float | None:
        """Relative error of all packed matrices together; None if nothing was packed."""
        measured = [layer for layer in self.layers if layer["norm"] is not None]
        if not measured:
            return None
        return _relative(sum(layer["error"] for layer in measured), sum(layer["norm"] for layer in measured))


def write(work: Work, *, progress: Progress | None = None) -> Written:
    """Write the quantised checkpoint. The target appears only when complete; needs memory for the largest tensor.

    Raises:
        CheckpointError: values cannot be packed, or the disk is full or fails. Finished files are kept in
            `work.scratch`, and the same work resumes from there.
        InputError: that folder holds other work, or another process uses it.
    """
    written, new = Written(work), work.scratch / "new"
    finished = False
    try:
        new.mkdir(parents=True, exist_ok=True)
        with journal(work.scratch / Journal.NAME, new, _identity(work), str(work.target)) as notes:
            try:
                _write_all(work, new, notes, written, progress or (lambda *_: None))
                if work.target.is_dir():
                    work.target.rmdir()  # known to be empty
                new.rename(work.target)
            finally:
                finished = bool(notes.files)
                if not finished or not new.is_dir():  # nothing to resume, or complete
                    shutil.rmtree(work.scratch, ignore_errors=True)
    except OSError as error:
        kept = (
            f" Finished files are kept in {work.scratch}: the same command goes on from there."
            if finished
            else ""
        )
        raise CheckpointError(f"{work.target} cannot be written: {error.strerror or error}.{kept}") from error
    return written


def _write_all(work: Work, new: Path, notes: Journal, written: Written, progress: Progress) -> None:
    done = {shard.file: notes.finished(shard.file, shard.size) for shard in work.shards}
    check_room(work.target.parent, sum(shard.size for shard in work.shards if done[shard.file] is None))
    for path in new.iterdir():
        if done.get(path.name) is None:
            path.unlink()
    position = 0
    for shard in work.shards:
        record = done[shard.file]
        if record is None:
            layers = _write_shard(
                work, shard, new / shard.file, lambda name, at: progress(name, at, work.size), position
            )
            notes.note(shard.file, layers=layers)
        else:
            layers = record["layers"]
            written.kept_files += 1
        position += shard.size
        written.layers += layers
        written.files.append(shard.file)
    progress("", work.size, work.size)
    _write_beside(work, new)


def _write_shard(
    work: Work, shard: Shard, path: Path, progress: Callable[[str, int], None], position: int
) -> list[dict[str, Any]]:
    """Write one file; return the report's records of its tensors."""
    specs = {name: spec for piece in shard.pieces for name, spec in piece.specs.items()}
    order, align = file_layout(specs, work.config.quant_method)
    layers = []
    with SafetensorsWriter(path, specs, order, align=align) as file:
        for piece in shard.pieces:
            progress(piece.name, position)
            layers.append(_write_piece(work, piece, file))
            position += piece.size
    return layers


def _write_piece(work: Work, piece: Piece, file: SafetensorsWriter) -> dict[str, Any]:
    values = _values(work, piece.name)
    record: dict[str, Any] = {
        "name": piece.name,
        "format": piece.choice.format.name,
        "group": piece.choice.group or None,
        "weights": piece.weights,
        "bytes": piece.size,
        "error": None,
        "norm": None,
    }
    if not piece.choice.packs or "" in piece.saved:
        (name,) = piece.saved.values()
        file.write(name, values.to(piece.specs[name][0]))
        return record
    format = piece.choice.format
    # A format that does not store the dtype holds the values as accurately as it can.
    dtype = torch.float32 if format.follows_dtype else work.dtype
    packed = format.quantize(values, piece.choice.group, name=piece.name, dtype=dtype, device=_CPU)
    for part, tensor in format.to_state(packed).items():
        file.write(piece.saved[part], tensor)
    record["error"], record["norm"] = squared_error(values, packed)
    return record


def _values(work: Work, name: str) -> Tensor:
    """Return a tensor of the source: mapped from its file, or decoded in chunks if it is packed there."""
    if name in work.plan.plain:
        return work.checkpoint.tensor(work.plan.plain[name])
    packed = work.plan.packed[name.rpartition(".")[0]].weight
    values = torch.empty(packed.shape, dtype=packed.dtype)
    for start in range(0, packed.shape[0], _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        values[rows] = dequantize(packed, packed.dtype, rows)
    return values


def _write_beside(work: Work, new: Path) -> None:
    """Write index, configuration, tokenizer and settings."""
    copy_beside(work.source, new, leave_out=(CONFIG_NAME, PARAMS_NAME))
    config = work.model_config
    note(config, work.plan, work.config)
    config.quantization_config = work.config
    note_kind(config, work.checkpoint)
    if isinstance(work.config, BitsAndBytesConfig):
        config.dtype = work.dtype
    (new / CONFIG_NAME).write_text(config.to_json_string(), encoding="utf-8")
    write_image_settings(config, new)
    if len(work.shards) > 1:
        where = {name: shard.file for shard in work.shards for piece in shard.pieces for name in piece.specs}
        index = {"metadata": {"total_size": work.size}, "weight_map": where}
        (new / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _identity(work: Work) -> str:
    """Return the identity of the work: version, settings, outputs, and the source's files."""
    files = {path.name: path.stat() for path in work.checkpoint.paths}
    identity: Mapping[str, Any] = {
        "vitrail": __version__,
        "config": work.config.to_dict(),
        "shards": [[shard.file, [list(piece.specs) for piece in shard.pieces]] for shard in work.shards],
        "choices": [_named(piece.choice) for shard in work.shards for piece in shard.pieces],
        "source": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _named(choice: Choice) -> str:
    """Return a choice as named in journals of version 0.1.0, so that their runs can resume."""
    kind = choice.format.name
    return f"Choice(part={choice.part!r}, kind={kind!r}, group={choice.group!r}, why={choice.why!r})"


def _public(layer: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in layer.items() if name not in ("error", "norm")}
    error = None if layer["norm"] is None else _relative(layer["error"], layer["norm"])
    return shown | {"relative_error": error}


def _relative(error: float, norm: float) -> float:
    return float((error / norm) ** 0.5) if norm else 0.0
