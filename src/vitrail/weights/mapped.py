"""Checks that mapped files used by a model are still whole."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.files.safetensors import SafetensorsFile
from vitrail.ops import memory
from vitrail.weights.checkpoint import Checkpoint

_FILES: weakref.WeakKeyDictionary[nn.Module, tuple[SafetensorsFile, ...]] = weakref.WeakKeyDictionary()


def copied(checkpoint: Checkpoint, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return a copy of a tensor, where possible read so that truncation of the file is an error, not a signal."""
    read = getattr(checkpoint, "copied", None)
    made: Tensor = (
        memory.copied(checkpoint.tensor(name), device, dtype) if read is None else read(name, device, dtype)
    )
    return made


def keep_mapped(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Record that `model` uses pages of the checkpoint's files."""
    _FILES[model] = tuple(_files(checkpoint))


def refuse_cut(source: Any) -> None:
    """Raise CheckpointError if a file of a checkpoint, or one mapped by a model, has been truncated."""
    for file in _FILES.get(source, ()) if isinstance(source, nn.Module) else _files(source):
        file.refuse_cut()


def _files(checkpoint: Any) -> Iterable[SafetensorsFile]:
    files: Iterable[SafetensorsFile] = getattr(checkpoint, "files", {}).values()
    return files
