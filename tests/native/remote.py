"""A library that runs in qemu-aarch64, called as if ctypes had opened it here. The other end is remote.cpp."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

from tests.native import harness
from vitrail.ops.cpu import library

_CALL = struct.Struct("<64sQ24Q8Q")
_ANSWER = struct.Struct("<QQ256s")
_LINUX_SET_PTRACER = 0x59616D61  # lets a child read its parent's memory where the kernel asks for permission
_MARGIN, _STACK = 1 << 34, 1 << 24  # how far below its own addresses a process may grow


class Remote:
    """The emulator with the library of a folder; its attributes are the library's functions."""

    def __init__(self, folder: Path) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_LINUX_SET_PTRACER, ctypes.c_ulong(-1).value, 0, 0, 0)
        self._lock = threading.Lock()
        self._process = _started(folder)
        atexit.register(self._process.kill)

    def __getattr__(self, name: str) -> Function:
        if not name.startswith("vt_"):
            raise AttributeError(name)
        function = Function(self, name)
        setattr(self, name, function)
        return function

    def call(self, name: str, integers: list[int], floats: list[int], wants_text: bool) -> Any:
        """One call; arguments as they lie in registers."""
        if len(integers) > 24 or len(floats) > 8:
            raise ValueError(f"{name} has more arguments than remote.cpp passes on.")
        padded = [*integers, *[0] * (24 - len(integers)), *floats, *[0] * (8 - len(floats))]
        with self._lock:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.write(_CALL.pack(name.encode(), wants_text, *padded))
            self._process.stdin.flush()
            answer = self._process.stdout.read(_ANSWER.size)
        if len(answer) != _ANSWER.size:
            raise RuntimeError(f"the emulator ended in {name} with status {self._process.wait()}.")
        found, value, text = _ANSWER.unpack(answer)
        if not found:
            raise AttributeError(f"the library has no function {name}.")
        return text.partition(b"\0")[0] if wants_text else value


class Function:
    """One function, with ctypes' argtypes and restype."""

    def __init__(self, remote: Remote, name: str) -> None:
        self.remote, self.name = remote, name
        self.argtypes: list[Any] | None = None
        self.restype: Any = ctypes.c_int

    def __call__(self, *arguments: Any) -> Any:
        types = self.argtypes or [ctypes.c_int64] * len(arguments)
        assert len(types) == len(arguments), f"{self.name} takes {len(types)} arguments, got {len(arguments)}"
        integers: list[int] = []
        floats: list[int] = []
        for kind, value in zip(types, arguments, strict=True):
            if kind is ctypes.c_float:
                floats.append(int.from_bytes(struct.pack("<f", value), "little"))
            elif kind is ctypes.c_double:
                floats.append(int.from_bytes(struct.pack("<d", value), "little"))
            else:
                integers.append(_register(value))
        value = self.remote.call(self.name, integers, floats, self.restype is ctypes.c_char_p)
        if self.restype is None or self.restype is ctypes.c_char_p:
            return value if self.restype else None
        return self.restype(value).value


def _register(value: Any) -> int:
    """An integer, an address, an array or None as 64 bits."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value & (1 << 64) - 1
    if isinstance(value, ctypes._SimpleCData):
        return int(value.value or 0) & (1 << 64) - 1
    if type(value).__name__ == "CArgObject":  # byref(…)
        value = value._obj
    return ctypes.addressof(value)


def _started(folder: Path) -> subprocess.Popen[bytes]:
    """An emulator none of whose own memory lies where this process has, or may soon have, some."""
    library = folder / harness.build_module().LIBRARY
    command = [
        harness.EMULATOR,
        "-L",
        "/usr/aarch64-linux-gnu",
        str(folder / "remote"),
        str(library),
        str(os.getpid()),
    ]
    for _ in range(50):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        if process.stdout.read(5) != b"ready":
            raise RuntimeError(f"the emulator did not start: status {process.wait()}.")
        if not _overlap(_ranges("self"), _ranges(str(process.pid))):
            return process
        process.kill()
        process.wait()
    raise RuntimeError("every emulator lay in the way of this process's memory.")


def _ranges(process: str) -> list[tuple[int, int]]:
    """Addresses that a process has, and may have before long, without the kernel's own page near the top."""
    ranges = []
    for line in Path(f"/proc/{process}/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, last = (int(word, 16) for word in line.split()[0].split("-"))
        if "[vsyscall]" not in line:
            ranges.append((first - (_STACK if "[stack]" in line else _MARGIN), last + _STACK))
    return ranges


def _overlap(ours: list[tuple[int, int]], theirs: list[tuple[int, int]]) -> bool:
    return any(a < d and c < b for a, b in theirs for c, d in ours)


def use(folder: Path) -> None:
    """From now on Vitrail's kernels are the library of `folder`, in the emulator."""
    library._FOLDER = folder
    library._load = lambda path: Remote(path.parent)  # type: ignore[assignment,return-value]
