"""Opening of regular files only, since others can block a reader; ~ in paths."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading; OSError for a pipe, a device or a socket, which could block for ever.

    The check is on the open file, so that a concurrent swap has no effect.
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
    """Return a path with ~ and ~user expanded; unchanged for an unknown user."""
    return Path(os.path.expanduser(name))
