"""Git LFS pointers: the small text that a clone made without Git LFS holds in place of a large file."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from vitrail.errors import CheckpointError, VitrailError

_BEGINNING: Final = b"version https://git-lfs.github.com/spec/"
PREFIX_SIZE: Final = len(_BEGINNING)


def refuse_pointer(data: bytes, name: str, kind: type[VitrailError] = CheckpointError) -> None:
    """Raise `kind`, naming the file, where `data` (a file, or its first PREFIX_SIZE bytes) is a Git LFS pointer."""
    if data.startswith(_BEGINNING):
        raise kind(
            f"{name}: a Git LFS pointer in place of the file; fetch the file with 'git lfs pull', or download it again."
        )


def refuse_pointer_file(file: Path, kind: type[VitrailError] = CheckpointError) -> None:
    """The same for a file on the disk; one that cannot be read is not refused here."""
    with suppress(OSError), file.open("rb") as stream:
        refuse_pointer(stream.read(PREFIX_SIZE), str(file), kind)
