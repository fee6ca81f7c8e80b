"""Checkpoint: what every file format gives of a checkpoint's tensors, and the one that reads a folder.

A file is looked into behind this interface only. Another format is a class with these methods and a line in
`READERS`, under the name that files/layout.py gives to its folders.
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
    """The tensors of a folder under the names and in the order of rows that Hugging Face's format has.

    config_name   the file that holds the configuration, for messages.
    """

    config_name: str

    @property
    def folder(self) -> CheckpointFolder:
        """Where it lies."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that hold the tensors."""

    @property
    def kind(self) -> str | None:
        """The model_type that the folder's configuration names, None where there is none."""

    def names(self) -> Sequence[str]:
        """All tensors, in the order in which they are read fastest."""

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor; nothing of its data is read."""

    def tensor(self, name: str) -> Tensor:
        """A tensor on the CPU. Mapped where `copies` is False: a slice of it reads no other rows; copy it to keep it."""

    def copies(self, name: str) -> bool:
        """Whether `tensor` makes a copy, which then takes memory of its own."""

    def shown(self, name: str) -> str:
        """How a message calls a tensor of the files or of the model."""


# Format of a folder → what reads its tensors.
READERS: dict[str, Callable[[CheckpointFolder], Checkpoint]] = {
    HF: SafetensorsCheckpoint,
    MISTRAL: MistralCheckpoint,
}


def open_checkpoint(folder: str | os.PathLike[str], format: str | None = None) -> Checkpoint:
    """The tensors of a folder; `format` chooses where it holds several (see CheckpointFolder.layout)."""
    opened = CheckpointFolder.at(folder, format=format)
    return READERS[opened.layout](opened)
