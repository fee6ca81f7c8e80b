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
    number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(number).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    raise OSError(errno.EINVAL, "it is no regular file")


def home_path(name: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user spelled out; as it is where there is no such user, for then it names nothing."""
    return Path(os.path.expanduser(name))
