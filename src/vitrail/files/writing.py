"""Atomic writing of small text files; preparation and checks of the destination folder."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitrail.errors import CheckpointError, InputError

_PARTIAL = re.compile(r"\.\d+(-\d+)?\.partial", re.ASCII)
_OLD = 3600.0  # seconds; an older unfinished file is from a killed process


def write_json(file: Path, value: Mapping[str, Any]) -> Path:
    """Write an object in transformers' form: keys sorted, two spaces, a newline at the end."""
    return write_text(file, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> Path:
    """Write `text` atomically and return `file`. Raises CheckpointError if it cannot be written."""
    if not file.name:
        raise CheckpointError(f"{str(file)!r} names no file; give the file's own name too.")
    scratch = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        for left in file.parent.glob(f".{glob.escape(file.name)}.*.partial"):
            if _PARTIAL.search(left.name) and time.time() - left.lstat().st_mtime > _OLD:
                left.unlink()
        scratch.unlink(missing_ok=True)  # a link placed there is not followed
        with scratch.open("x", encoding="utf-8") as stream:
            stream.write(text)
        scratch.replace(file)
    except (OSError, UnicodeError) as error:
        with suppress(OSError):  # too long a name cannot be removed either
            scratch.unlink()
        raise CheckpointError(f"{file} cannot be written: {getattr(error, 'strerror', error)}") from error
    return file


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Convert the disk's errors in this block to CheckpointError that names `target`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}.") from error


def refuse_blocked(folder: Path) -> None:
    """Raise InputError if `folder` cannot be made: a file in its place or above, or no right to write."""
    place = next((part for part in (folder, *folder.parents) if os.path.lexists(part)), folder)
    if not place.is_dir():
        raise InputError(f"{folder} cannot be a folder: {place} is a file; choose another name.")
    if not os.access(place, os.W_OK):
        raise InputError(f"{folder} cannot be written: {place} does not allow it; choose another name.")


def prepare_folder(save_directory: str | os.PathLike[str]) -> Path:
    """Return the folder to save into, made if missing. Raises CheckpointError for a file in its place."""
    folder = Path(save_directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CheckpointError(
            f"{folder} is a file; the name of a folder to save into was expected."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be made: {error.strerror or error}") from error
    return folder


def check_new(folder: Path) -> None:
    """Raise InputError unless `folder` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already; give the name of a new folder.")


def check_room(folder: Path, size: int) -> None:
    """Raise CheckpointError unless the disk of `folder` has space for weights of `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(
            f"{folder} has {free:,} bytes free, and the weights need {size:,}; free some or choose another."
        )
