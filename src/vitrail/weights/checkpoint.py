"""Checkpoint: protocol of a file format's tensors, and the table of formats.

All files are read through this interface. A new format is a class with these methods and a line in `READERS`, under its
name in files/layout.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.layout import HF, MISTRAL
from vitrail.files.safetensors import TensorSpec
from vitrail.weights.mistral_checkpoint import MistralCheckpoint
from vitrail.weights.safetensors_checkpoint import SafetensorsCheckpoint


class Checkpoint(Protocol):
    """The tensors of a folder, with Hugging Face's names and row order.

    Attributes:
        config_name: file with the configuration, for messages.
    """

    config_name: str

    @property
    def folder(self) -> CheckpointFolder:
        """The checkpoint's folder."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files with tensors."""

    @property
    def kind(self) -> str | None:
        """model_type of the folder's configuration, or None."""

    def names(self) -> Sequence[str]:
        """Return the names of all tensors, in the order that is fastest to read."""

    def spec(self, name: str) -> TensorSpec:
        """Return dtype and shape of a tensor without reading its data."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor on the CPU. Mapped if `copies` is False: a slice reads only its rows; copy it to keep it."""

    def copies(self, name: str) -> bool:
        """Return whether `tensor` copies, using memory of its own."""

    def shown(self, name: str) -> str:
        """Return the name of a tensor (of the files or of the model) for messages."""


# Format of a folder → constructor of its reader.
READERS: dict[str, Callable[[CheckpointFolder], Checkpoint]] = {
    HF: SafetensorsCheckpoint,
    MISTRAL: MistralCheckpoint,
}


def open_checkpoint(folder: str | os.PathLike[str], format: str | None = None) -> Checkpoint:
    """Open the tensors of a folder; `format` selects one if it holds several (see CheckpointFolder.layout)."""
    opened = CheckpointFolder.at(folder, format=format)
    return READERS[opened.layout](opened)
