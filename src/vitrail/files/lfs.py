"""Git LFS pointers: the short text in place of a large file in a clone made without Git LFS."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final

from vitrail.errors import CheckpointError, VitrailError

_BEGINNING: Final = b"version https://git-lfs.github.com/spec/"
PREFIX_SIZE: Final = len(_BEGINNING)


def refuse_pointer(data: bytes, name: str, kind: type[VitrailError] = CheckpointError) -> None:
    """Raise `kind`, naming the file, if `data` (a file, or its first PREFIX_SIZE bytes) is a Git LFS pointer."""
    if data.startswith(_BEGINNING):
        raise kind(
            f"{name}: a Git LFS pointer in place of the file; fetch the file with 'git lfs pull', or download it again."
        )


def refuse_pointer_file(file: Path, kind: type[VitrailError] = CheckpointError) -> None:
    """Check a file on the disk likewise; an unreadable one is left to its reader."""
    with suppress(OSError), file.open("rb") as stream:
        refuse_pointer(stream.read(PREFIX_SIZE), str(file), kind)
