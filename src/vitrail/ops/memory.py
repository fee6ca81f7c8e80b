"""Memory of large CPU tensors: 2 MiB pages where the system offers them.

A processor translates an address before reading it, and caches a few thousand translations. Weights read once per token
span more 4 KiB pages than that; with large pages the cost of translation vanishes.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import ConfigError

ENVIRONMENT = "VITRAIL_PAGES"  # "small" disables large pages, for comparison
LEAST = 4 * 2**20  # bytes from which a tensor gets its own mapping
_SETTINGS = "sys/kernel/mm/transparent_hugepage"


@dataclass(frozen=True, slots=True)
class Pages:
    """Page size of large tensors.

    Attributes:
        size: bytes per page.
        large: whether that exceeds the system's base page.
        reason: the system's setting that allows it, or why not.
    """

    size: int
    large: bool
    reason: str


def pages(root: Path = Path("/")) -> Pages:
    """Return the pages that `empty` uses, from the system's files under `root`. ConfigError for an unknown VITRAIL_PAGES."""
    if _wanted() == "small":
        return _small(f"{ENVIRONMENT}=small")
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return _small(f"{platform.system() or 'this system'} has no way to ask for larger ones")
    settings = root / _SETTINGS
    size = _text(settings / "hpage_pmd_size")
    if not size.isdecimal() or int(size) <= mmap.PAGESIZE:
        return _small("the kernel is built without transparent_hugepage")
    setting = _chosen(settings / f"hugepages-{int(size) // 1024}kB" / "enabled")
    if setting in ("", "inherit"):
        setting = _chosen(settings / "enabled")
    if setting not in ("always", "madvise"):
        return _small(f"transparent_hugepage: {setting or 'unknown'}")
    return Pages(int(size), True, f"transparent_hugepage: {setting}")


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return an uninitialised contiguous tensor; a large one on the CPU lies in large pages where available.

    It uses its own size of memory and no more, and is freed like any other tensor.
    """
    count = math.prod(shape)
    if torch.device(device).type == "cpu" and count * dtype.itemsize >= LEAST:
        flat = _mapped(count, dtype)
        if flat is not None:
            return flat.view(tuple(shape))
    return torch.empty(tuple(shape), dtype=dtype, device=device)


def copied(
    tensor: Tensor, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a contiguous copy in memory from `empty`; device and dtype default to the tensor's."""
    return empty(tensor.shape, dtype or tensor.dtype, device or tensor.device).copy_(tensor)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate vectors of one dtype in memory from `empty`."""
    first, count = parts[0], sum(part.numel() for part in parts)
    return torch.cat(list(parts), out=empty((count,), first.dtype, first.device))


def give_back() -> None:
    """Return freed heap memory to the system where the C library can (glibc).

    Fragments between live blocks are otherwise retained: after quantising a model, as much again as its weights.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _trim() -> Any:
    """Return glibc's malloc_trim, or None."""
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        found = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
    return found


def ask_for_large(mapping: mmap.mmap) -> None:
    """Request large pages for a mapped file where its file system supports them, before its first byte is read."""
    if hasattr(mmap, "MADV_HUGEPAGE") and _wanted() != "small":
        _advise(mapping, 0, len(mapping))


def _mapped(count: int, dtype: torch.dtype) -> Tensor | None:
    """Return a vector aligned to a large page in its own mapping; None without large pages."""
    found, size = pages(), count * dtype.itemsize
    whole = size // found.size * found.size
    if not found.large or not whole:
        return None
    try:
        mapping = mmap.mmap(-1, size + found.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None
    # Bytes before the first large page are never touched, so they use no memory; the tail of the last one stays in
    # small pages, because a large one would be allocated whole.
    start = -torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr() % found.size
    _advise(mapping, start, whole)
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=start)


def _advise(mapping: mmap.mmap, start: int, size: int) -> None:
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE, start, size)
    except OSError:  # a kernel without large pages: keep small ones
        return


def _wanted() -> str:
    wanted = os.environ.get(ENVIRONMENT, "").strip().lower()
    if wanted not in ("", "large", "small"):
        raise ConfigError(f"{ENVIRONMENT} must be large or small, but is {wanted!r}.")
    return wanted


def _small(reason: str) -> Pages:
    return Pages(mmap.PAGESIZE, False, reason)


def _chosen(path: Path) -> str:
    """Return the word in brackets of a file such as `always [madvise] never`, or ""."""
    return _text(path).partition("[")[2].partition("]")[0]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
