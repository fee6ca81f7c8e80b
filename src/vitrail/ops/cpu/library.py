"""The compiled kernels: locate and load the library, choose the instruction set.

VITRAIL_KERNELS chooses: off, portable, neon, avx2, avx512, amx; unset takes the best that the processor supports. Every
operator also has a PyTorch definition, which runs without a library.
"""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vitrail.arguments import checked
from vitrail.errors import ConfigError

ENVIRONMENT = "VITRAIL_KERNELS"
# In the order of native/cpu.h's Isa.
ISAS = ("portable", "neon", "avx2", "avx512", "amx")
_ABI = 6
_FOLDER = Path(__file__).parents[1] / "_kernels"
_LIBRARIES = ("libvitrail.so", "libvitrail.dylib", "libvitrail.dll")

# Element types as numbered in native/abi.h.
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}


_HELD = threading.local()


@dataclass(frozen=True, slots=True)
class Status:
    """Kernels in use, and why, for `vitrail info --system`.

    Attributes:
        used: instruction set of the kernels, or None if PyTorch is used.
        reason: why no library is in use, or "".
        compiler: compiler of the library, or None.
        others: name of each other instruction set → why it is unavailable; "" if it is available.
        threads: number of kernel threads.
    """

    used: str | None
    reason: str
    compiler: str | None
    others: dict[str, str]
    threads: int


class _Kernels:
    """The loaded library, or None and why."""

    def __init__(self) -> None:
        self.note = _read_note()
        self.enabled = True
        self.reason = ""
        self.library: ctypes.CDLL | None = None
        self.threads = 0
        wanted = os.environ.get(ENVIRONMENT, "").strip().lower()
        if wanted not in ("", "off", *ISAS):
            raise ConfigError(f"{ENVIRONMENT} must be one of off, {', '.join(ISAS)}, but is {wanted!r}.")
        if wanted == "off":
            self.reason = f"{ENVIRONMENT}=off"
            return
        self.library, self.reason = _open()
        if wanted and self.library is None:
            raise ConfigError(f"{ENVIRONMENT}={wanted} asks for kernels, but there are none: {self.reason}.")
        if wanted and self.library is not None and not self.library.vt_isa_use(ISAS.index(wanted)):
            raise ConfigError(f"{ENVIRONMENT}={wanted} cannot be used here: {self.why_not(wanted)}.")

    def why_not(self, isa: str) -> str:
        if self.library is None:
            return self.reason
        if isa not in ISAS:
            return f"the names are {', '.join(ISAS)}"
        reason: bytes = self.library.vt_isa_reason(ISAS.index(isa))
        return reason.decode()


def _read_note() -> dict[str, Any]:
    try:
        note = json.loads((_FOLDER / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"error": "this copy of Vitrail was never built; install it with pip, or run native/build.py"}
    return note if isinstance(note, dict) else {}


def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def _open() -> tuple[ctypes.CDLL | None, str]:
    """Load the library; return it, or None and the reason."""
    found = [_FOLDER / name for name in _LIBRARIES if (_FOLDER / name).exists()]
    if not found:
        return None, str(_read_note().get("error") or "no library was built")
    try:
        library = _load(found[0])
        library.vt_abi_version.restype = ctypes.c_int64
        version = library.vt_abi_version()
    except (OSError, AttributeError) as error:
        return None, f"{found[0].name} could not be loaded ({error})"
    if version != _ABI:
        return (
            None,
            f"{found[0].name} was built for version {version} of the interface, expected {_ABI}; build it again",
        )
    library.vt_isa_reason.restype = ctypes.c_char_p
    library.vt_threads.restype = ctypes.c_int64
    library.vt_set_threads.argtypes = [ctypes.c_int64]
    return library, ""


@lru_cache(maxsize=1)
def _kernels() -> _Kernels:
    return _Kernels()


def library() -> ctypes.CDLL | None:
    """Return the kernels, set to PyTorch's current thread count; None if PyTorch is used instead."""
    kernels = _kernels()
    if kernels.library is None or not kernels.enabled:
        return None
    threads = getattr(_HELD, "threads", 0) or torch.get_num_threads()
    if threads != kernels.threads:
        kernels.library.vt_set_threads(threads)
        kernels.threads = threads
    return kernels.library


def hold_threads(count: int) -> None:
    """Set the thread count of kernels called by this thread; 0: follow PyTorch's."""
    _HELD.threads = count


def function(name: str, *arguments: Any) -> Any:
    """Return the library function `name` with these ctypes argument types and no result; None without a library."""
    opened = _kernels().library
    if opened is None:
        return None
    found = getattr(opened, name)
    found.argtypes = list(arguments)
    found.restype = None
    return found


def status() -> Status:
    """Return which kernels run, and why not others."""
    kernels = _kernels()
    compiler = kernels.note.get("compiler")
    if kernels.library is None:
        return Status(None, kernels.reason, compiler, {}, torch.get_num_threads())
    used = ISAS[kernels.library.vt_isa_current()]
    others = {isa: kernels.why_not(isa) for isa in ISAS if isa != used}
    return Status(used, "", compiler, others, torch.get_num_threads())


@checked
@contextmanager
def using(isa: str) -> Iterator[None]:
    """Use the kernels of `isa`, or none for "off", within the block; for tests and benchmarks, not thread-safe.

    Raises:
        ConfigError: the processor or the library lacks it.
    """
    kernels = _kernels()
    if isa == "off":
        before, kernels.enabled = kernels.enabled, False
        try:
            yield
        finally:
            kernels.enabled = before
        return
    if kernels.library is None:
        raise ConfigError(f"kernels for {isa} were asked for, but there are none: {kernels.reason}.")
    old = kernels.library.vt_isa_current()
    if isa not in ISAS or not kernels.library.vt_isa_use(ISAS.index(isa)):
        raise ConfigError(f"kernels for {isa} cannot be used here: {kernels.why_not(isa)}.")
    try:
        yield
    finally:
        kernels.library.vt_isa_use(old)


def available() -> tuple[str, ...]:
    """Return the available instruction sets, slowest first; () without a library."""
    kernels = _kernels()
    if kernels.library is None:
        return ()
    return tuple(isa for isa in ISAS if kernels.library.vt_isa_available(ISAS.index(isa)))


# Public names in `vitrail`.
kernel_status, available_kernels, use_kernels = status, available, using
