"""Paths that people and files name: ~ spelled out, and regular files opened, for no other may be waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, for reading; OSError for a pipe, a device or a socket, which could keep its reader for ever.

    What is judged is what was opened: whoever swaps the file in between gains nothing.
    """
    stream = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return stream


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def home_path(name: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user spelled out; as it is where there is no such user, for then it names nothing."""
    return Path(os.path.expanduser(name))
