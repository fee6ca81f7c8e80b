"""Conversion of a checkpoint between Hugging Face's and Mistral's formats, tensor by tensor; atomic.

One file becomes one file: the same tensors in the same order, with other names, and rows of q and k reordered. Converting
there and back gives the same file, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vitrail.arguments import checked
from vitrail.configs import PretrainedConfig, read_config
from vitrail.configs.params_writer import params_from_config, params_text
from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.formatting import listed
from vitrail.files.layout import CONFIG_NAME, CONFIGS, HF, MISTRAL, NAMES, PARAMS_NAME, STEMS
from vitrail.files.replacing import scratch_folder
from vitrail.files.safetensors import SafetensorsFile, copy_safetensors
from vitrail.files.writing import check_new, check_room, writing
from vitrail.quant.config import read_quantization
from vitrail.weights.mistral_checkpoint import MistralCheckpoint, heads_of
from vitrail.weights.mistral_names import from_native, to_native
from vitrail.weights.names import EMBEDDING, HEAD, PROJECTOR_BIASES, canonical, published
from vitrail.weights.rotary_rows import Heads, to_halves, to_pairs
from vitrail.weights.safetensors_checkpoint import SafetensorsCheckpoint
from vitrail.weights.sidecar_files import copy_beside, note_kind, write_image_settings

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Converted:
    """Result: the folder, the names of the weight files, and the bytes of their tensors."""

    folder: Path
    files: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything determined before the first byte is written."""

    source: Path
    to: str
    config: PretrainedConfig
    checkpoint: SafetensorsCheckpoint
    names: Mapping[str, str]  # name in the source's files → new name
    heads: Heads


@checked
def convert(
    source: str | os.PathLike[str], out: str | os.PathLike[str], to: str, *, progress: Progress | None = None
) -> Converted:
    """Convert the checkpoint in the folder `source` to the format `to` in the new folder `out`.

        Tokenizers and the other sidecar files are copied; an existing configuration of the other format is used if it is
    equivalent. `out` appears only when complete; nothing is left after an error. Needs memory for one tensor.

        Args:
            source: folder of the checkpoint.
            out: folder to write, new or empty.
            to: "hf" or "mistral".
            progress: called with file name, bytes written and total bytes before each tensor.

        Raises:
            InputError: invalid `to` or `out`.
            CheckpointError: files are damaged, do not fit their configuration or cannot be written.
        UnsupportedError: the other format cannot hold these weights (quantised ones).
    """
    target = Path(out)
    if not target.name:
        raise InputError(f"{str(out)!r} names no folder to write into.")
    check_new(target)
    job = _prepare(source, to)
    size = sum(entry.nbytes for file in job.checkpoint.files.values() for entry in file.entries.values())
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent, f".{target.name}.partial-") as scratch:
            check_room(target.parent, size)
            new = scratch / "new"
            new.mkdir()  # with default permissions, which a temporary folder does not have
            copy_beside(job.source, new)
            _write_config(job, new)
            files = _write_weights(job, new, size, progress or (lambda *_: None))
            if target.is_dir():
                target.rmdir()  # known to be empty
            new.rename(target)
    return Converted(target, tuple(files), size)


def open_source(source: str | os.PathLike[str], to: str) -> tuple[PretrainedConfig, SafetensorsCheckpoint]:
    """Open configuration and tensors of a conversion's source; raises as `convert`."""
    if to not in NAMES:
        raise InputError(f"a format is 'hf' or 'mistral', got {to!r}.")
    given = MISTRAL if to == HF else HF
    folder = CheckpointFolder.at(source, format=given)
    if CONFIGS[given] not in folder.files:
        folder.refuse_adapter()
        held = CONFIGS[to] in folder.files
        already = (
            f"it is in {NAMES[to]} already" if held else f"nor has it a {CONFIGS[to]}: it holds no checkpoint"
        )
        raise CheckpointError(f"{source} has no {CONFIGS[given]} to convert from; {already}.")
    config = read_config(folder)
    _refuse_quantised(config)
    return config, MistralCheckpoint(folder) if given == MISTRAL else SafetensorsCheckpoint(folder)


def _refuse_quantised(config: PretrainedConfig) -> None:
    """Raise UnsupportedError for a quantised checkpoint."""
    if read_quantization(getattr(config, "quantization_config", None)) is not None:
        raise UnsupportedError(
            "quantised weights have no counterpart in Mistral's own format; convert the original ones."
        )


def _prepare(source: str | os.PathLike[str], to: str) -> _Job:
    config, checkpoint = open_source(source, to)
    names, foreign = {}, []
    for file in checkpoint.files.values():
        for name in file:
            new = _renamed(name, to, config.has_vision)
            names[name] = new or name
            foreign += [name] if new is None else []
    if foreign:
        raise CheckpointError(
            f"{source} holds tensors that have no name in {NAMES[to]}: {listed(foreign)}; a plain checkpoint of this family "
            "was expected."
        )
    if len(set(names.values())) != len(names):
        raise CheckpointError(f"{source} holds one tensor under two names.")
    own = {canonical(from_native(name) or name) if to == HF else canonical(name) for name in names}
    _note(config, own)
    note_kind(config, checkpoint)
    return _Job(Path(source), to, config, checkpoint, names, heads_of(config.to_dict()))


def _renamed(name: str, to: str, vision: bool) -> str | None:
    if to == MISTRAL:
        return to_native(canonical(name))
    own = from_native(name)
    return None if own is None else published(own, vision=vision)


def _note(config: PretrainedConfig, names: set[str]) -> None:
    """Set what only the files show: tied embeddings and the projector's biases."""
    tied = HEAD not in names and EMBEDDING in names
    config.tie_word_embeddings = tied
    config.get_text_config().tie_word_embeddings = tied
    if config.has_vision:
        config.multimodal_projector_bias = PROJECTOR_BIASES[0] in names


def _write_weights(job: _Job, folder: Path, size: int, progress: Progress) -> list[str]:
    files, done = _file_names(job), 0
    for name, opened in job.checkpoint.files.items():
        new = files[name]

        def read(tensor: str, opened: SafetensorsFile = opened, new: str = new) -> Tensor:
            nonlocal done
            progress(new, done, size)
            done += opened.entries[tensor].nbytes
            return _turned(job, tensor, opened.tensor(tensor))

        copy_safetensors(folder / new, opened, job.names, read)
        progress(new, done, size)
    if list(files.values()) != [f"{STEMS[job.to]}.safetensors"]:
        _write_index(job, folder, files, size)
    return list(files.values())


def _turned(job: _Job, name: str, rows: Tensor) -> Tensor:
    to_hf = job.to == HF
    heads = job.heads.of(canonical((from_native(name) or name) if to_hf else name))
    if heads is None:
        return rows
    return to_halves(rows, heads, name) if to_hf else to_pairs(rows, heads, name)


def _file_names(job: _Job) -> dict[str, str]:
    """Map files of the source to new files: numbered as published ones, a single one without a number."""
    stem, count = STEMS[job.to], len(job.checkpoint.files)
    if count == 1 and job.checkpoint.index is None:
        return dict.fromkeys(job.checkpoint.files, f"{stem}.safetensors")
    return {
        name: f"{stem}-{number:05d}-of-{count:05d}.safetensors"
        for number, name in enumerate(sorted(job.checkpoint.files), start=1)
    }


def _write_index(job: _Job, folder: Path, files: Mapping[str, str], size: int) -> None:
    """Write the index, with the source's own metadata if any."""
    index = job.checkpoint.index or {"metadata": {"total_size": size}}
    where = {job.names[name]: files[file] for file, opened in job.checkpoint.files.items() for name in opened}
    text = json.dumps({**index, "weight_map": where}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / f"{STEMS[job.to]}.safetensors.index.json").write_text(text, encoding="utf-8")


def _write_config(job: _Job, folder: Path) -> None:
    """Write the new format's configuration, unless an equivalent one was copied."""
    path = folder / CONFIGS[job.to]
    if path.is_file():
        other = read_config(folder, job.to)
        if _geometry(other) == _geometry(job.config):
            return
        raise CheckpointError(
            f"{job.source} holds a {CONFIG_NAME} and a {PARAMS_NAME} that describe different models; remove the one that "
            "is wrong."
        )
    if job.to == HF:
        path.write_text(job.config.to_json_string(), encoding="utf-8")
        write_image_settings(job.config, folder)
    else:
        path.write_text(params_text(params_from_config(job.config)), encoding="utf-8")


def _geometry(config: PretrainedConfig) -> dict[str, object]:
    """Return the fields that configurations of one model share; others exist in one format, or follow from the files."""
    params = params_from_config(config)
    loose = ("max_position_embeddings", "tied_embeddings", "vision_encoder")
    shared = {name: value for name, value in params.items() if name not in loose}
    vision = params.get("vision_encoder", {})
    optional = ("image_break_token_id", "image_end_token_id", "adapter_bias", "max_image_size")
    return {
        **shared,
        "vision_encoder": {name: value for name, value in vision.items() if name not in optional},
    }
