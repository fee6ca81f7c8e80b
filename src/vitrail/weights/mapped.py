"""Files whose pages a model uses where they are mapped: whether they are still whole. Reads no tensor."""

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
    """A copy of a tensor; where the checkpoint can, read so that a file that is cut meanwhile is an error and no signal."""
    read = getattr(checkpoint, "copied", None)
    made: Tensor = (
        memory.copied(checkpoint.tensor(name), device, dtype) if read is None else read(name, device, dtype)
    )
    return made


def keep_mapped(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Note that `model` uses pages of the checkpoint's files."""
    _FILES[model] = tuple(_files(checkpoint))


def refuse_cut(source: Any) -> None:
    """Raise CheckpointError where a file of a checkpoint, or one that a model uses where it is mapped, has been cut."""
    for file in _FILES.get(source, ()) if isinstance(source, nn.Module) else _files(source):
        file.refuse_cut()


def _files(checkpoint: Any) -> Iterable[SafetensorsFile]:
    files: Iterable[SafetensorsFile] = getattr(checkpoint, "files", {}).values()
    return files
