"""Save a model to a folder: safetensors, with an index if sharded, and its configurations; atomic."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitrail.configs.generation import GENERATION_CONFIG_NAME
from vitrail.errors import InputError
from vitrail.files.formatting import listed
from vitrail.files.layout import CONFIG_NAME
from vitrail.files.replacing import replacing
from vitrail.files.safetensors import write_safetensors
from vitrail.quant.formats import file_layout
from vitrail.weights.names import EMBEDDING, HEAD, canonical, saved_names
from vitrail.weights.safetensors_checkpoint import INDEX, SINGLE

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    max_shard_size: int | str = "5GB",
    state_dict: Mapping[str, Tensor] | None = None,
    generation_config: Any = None,
) -> None:
    """Write `model` for Vitrail and transformers: tensors, and its `config` as config.json.

    A head tied to the embeddings is not written. Everything is written to a temporary place in the folder and moved in
    when complete: after an error the folder is unchanged, and after a kill it holds the earlier model, the new one, or a
    mark that it is incomplete. Weights of an earlier save are replaced.

    Args:
        model: to save.
        folder: to write to.
        max_shard_size: bytes, or "200MB", "5GB", "2GiB": larger models are split into shards with an index; a single
            larger tensor gets a shard of its own.
        state_dict: tensors to write instead of the model's, under the model's names.
        generation_config: written as generation_config.json if given.

    Raises:
        CheckpointError: the disk is full or fails.
    """
    target = Path(folder)
    limit = shard_bytes(max_shard_size)
    tensors = _to_write(model, state_dict)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; a folder to save into was expected.")
    with replacing(target, last=CONFIG_NAME, stale=_is_weights, optional=(GENERATION_CONFIG_NAME,)) as new:
        _write_weights(new, tensors, limit)
        for config in (getattr(model, "config", None), generation_config):
            if config is not None:
                config.save_pretrained(new)


def shard_bytes(size: int | str) -> int:
    """Return the bytes of a max_shard_size such as 1000, "200MB" or "2GiB". InputError for anything else."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) *([KMGT]I?B)?", str(size).strip().upper(), re.ASCII)
    value = float(match[1]) * _UNITS[match[2] or ""] if match else 0
    if isinstance(size, bool) or value < 1:
        raise InputError(f"max_shard_size must be a number of bytes or a text like '5GB', got {size!r}.")
    return int(value)


def _to_write(model: nn.Module, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return name in the file → tensor, in the model's order, without a tied head."""
    state = dict(model.state_dict() if state_dict is None else state_dict)
    if _is_tied(state):
        state = {name: tensor for name, tensor in state.items() if canonical(name) != HEAD}
    elsewhere = [name for name, tensor in state.items() if tensor.is_meta]
    if elsewhere:
        raise InputError(
            f"{type(model).__name__} has tensors without values, nothing to save: {listed(elsewhere)}."
        )
    names = saved_names(state)
    return {names[name]: tensor for name, tensor in state.items()}


def _is_tied(state: Mapping[str, Tensor]) -> bool:
    by_name = {canonical(name): tensor for name, tensor in state.items()}
    head, table = by_name.get(HEAD), by_name.get(EMBEDDING)
    if head is None or table is None or head.is_meta:
        return False
    return head.data_ptr() == table.data_ptr() and head.shape == table.shape and head.device == table.device


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], limit: int) -> None:
    shards = in_shards({name: tensor.nbytes for name, tensor in tensors.items()}, limit)
    for file, names in shards.items():
        _write_file(folder / file, {name: tensors[name] for name in names})
    if len(shards) == 1:
        return
    weight_map = {name: file for file, names in shards.items() for name in names}
    metadata = {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
    (folder / INDEX).write_text(text, encoding="utf-8")


def _write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file, in the order of the formats in it, so that tensors can be used in place where possible."""
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    order, align = file_layout(specs)
    write_safetensors(path, tensors, order=order, align=align)


def in_shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Return file → names of its tensors, in order: at most `limit` bytes per file, except for a single larger tensor."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {f"model-{n:05d}-of-{count:05d}.safetensors": names for n, names in enumerate(shards, start=1)}


def _is_weights(name: str) -> bool:
    """Return whether a file holds weights of an earlier save, which would be loaded instead of or beside the new ones."""
    return name in (SINGLE, INDEX) or _SHARD.fullmatch(name) is not None
