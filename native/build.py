"""Compiles the kernels of this folder into one shared library; takes neither torch nor Python's headers.

Each file is one object, with the flags of the instruction set in its name (`…_avx2.cpp`), so that the library runs on
every processor and chooses at run time. `python native/build.py` builds for development; installing does the same
through hatch_build.py. CXX chooses the compiler, VITRAIL_BUILD=off builds nothing.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
TARGET = SOURCES.parent / "src" / "vitrail" / "ops" / "_kernels"
LIBRARY = {"win32": "libvitrail.dll", "darwin": "libvitrail.dylib"}.get(sys.platform, "libvitrail.so")
NOTE = "build.json"

# -ffp-contract=off: q4 and q8 are defined by separate roundings, and a compiler may not merge them.
COMMON = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
# On Windows code has no fixed place anyway, and the compiler's own libraries go into ours.
_POSITION = [] if sys.platform == "win32" else ["-fPIC"]
_LINK = ["-static"] if sys.platform == "win32" else ["-pthread"]
_AVX2 = ["-mavx2", "-mfma", "-mf16c"]
# GCC 12 warns of its own headers' undefined vectors.
_AVX512 = [
    *_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni",
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",
]  # fmt: skip
X86 = {"avx2": _AVX2, "avx512": _AVX512, "amx": [*_AVX512, "-mamx-tile", "-mamx-int8", "-mamx-bf16"]}
ARM = {"neon": ["-march=armv8.2-a+dotprod"]}


class CompilerError(Exception):
    """One sentence for `vitrail info --system`; `details` is all that the compiler said."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.details = details


def compiler() -> list[str]:
    """The C++ compiler as the first words of a command: CXX ("ccache g++" too), else the first of the usual names."""
    named = os.environ.get("CXX", "").strip()
    if named:
        words = [named] if shutil.which(named) else shlex.split(named)
        if words and shutil.which(words[0]):
            return words
        raise CompilerError(f"the compiler that CXX named, {named}, was not found when Vitrail was installed")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CompilerError("no C++ compiler (c++, g++ or clang++) was found when Vitrail was installed")


def architecture() -> str:
    """The machine's name as the flags' tables have it."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def flags_of(source: Path, machine: str) -> list[str] | None:
    """The flags for one file on an architecture; None when it belongs to another one."""
    suffix = source.stem.rpartition("_")[2]
    here = X86 if machine == "x86_64" else ARM if machine == "aarch64" else {}
    if suffix in {**X86, **ARM}:
        return here.get(suffix)
    return []


def sources(machine: str) -> list[tuple[Path, list[str]]]:
    """The files that an architecture compiles, each with its own flags."""
    found = [(source, flags_of(source, machine)) for source in sorted(SOURCES.glob("*.cpp"))]
    return [(source, flags) for source, flags in found if flags is not None]


def build(
    target: Path = TARGET,
    *,
    cxx: list[str] | None = None,
    machine: str | None = None,
    files: list[tuple[Path, list[str]]] | None = None,
) -> Path:
    """Compile and link into the folder `target`; the library's path. CompilerError says what went wrong.

    `files` are other sources and flags than `sources(machine)`: tests compile for processors that are not there.
    """
    cxx, machine = cxx or compiler(), machine or architecture()
    with tempfile.TemporaryDirectory() as room:
        made = [Path(room) / f"{number}.o" for number in range(len(files or sources(machine)))]
        commands = [
            [*cxx, *COMMON, *_POSITION, *flags, "-c", str(source), "-o", str(out)]
            for out, (source, flags) in zip(made, files or sources(machine), strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            list(workers.map(_run, commands))
        library = Path(room) / LIBRARY
        _run([*cxx, "-shared", *_LINK, *map(str, made), "-o", str(library)])
        target.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a process that has the old library open keeps it. Two builds at once don't meet.
        new = target / f"{LIBRARY}.{os.getpid()}.new"
        shutil.copy(library, new)
        os.replace(new, target / LIBRARY)
    _note(target, {"compiler": _version(cxx), "architecture": machine, "error": None})
    return target / LIBRARY


def build_if_possible(target: Path = TARGET) -> Path | None:
    """As `build`, but without a compiler, or when it fails, note the reason for `vitrail info --system`: None."""
    target.mkdir(parents=True, exist_ok=True)
    try:
        if os.environ.get("VITRAIL_BUILD", "").lower() in ("off", "0", "no"):
            raise CompilerError("VITRAIL_BUILD=off was set when Vitrail was installed")
        return build(target)
    except CompilerError as error:
        for leftover in target.glob("libvitrail.*"):  # of an older build
            leftover.unlink()
        sys.stderr.write(error.details)
        _note(target, {"compiler": None, "architecture": architecture(), "error": str(error)})
        return None


def _note(target: Path, note: dict[str, str | None]) -> None:
    (target / NOTE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


def _version(cxx: list[str]) -> str:
    said = subprocess.run([*cxx, "--version"], capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0] or " ".join(cxx)


def _run(command: list[str]) -> None:
    """A compiler's or the linker's run; what it warns of goes to the standard error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise CompilerError(f"the compiler {command[0]} could not be run: {error}") from error
    said = done.stderr.strip()
    if done.returncode:
        named = next((Path(word).name for word in command if word.endswith(".cpp")), "the library")
        worst = next((line for line in said.splitlines() if "error" in line), said.partition("\n")[0])
        raise CompilerError(
            f"the compiler {command[0]} failed on {named}: {worst.strip()[:300] or 'it did not say why'}",
            f"{shlex.join(command)}\n{said}\n",
        )
    if said:
        sys.stderr.write(f"{said}\n")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build()}\n")
    except CompilerError as failed:
        sys.exit(f"{failed.details}{failed}")
