"""Kernels for processors that this machine lacks: compiled, run, and tested by the very tests of the real ones.

AVX-512 and AMX are emulated on AVX2 (emulated.h, over SIMDe); NEON is compiled by a cross compiler and runs in
qemu-aarch64, which reads and writes this process's memory (remote.cpp). No test of its own: see test_other_processors.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CROSS_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
# Which kernels a process started by `run_tests` uses.
ENVIRONMENT = "VITRAIL_TEST_PROCESSOR"
# For development: compile these areas alone ("rows,quant"), while another one's sources are in pieces.
AREAS = "VITRAIL_TEST_AREAS"
EMULATED = ("avx512", "amx")
PROCESSORS = (*EMULATED, "neon")


class Missing(Exception):
    """A tool that this machine lacks: the reason to skip a test."""


def build_module() -> ModuleType:
    """native/build.py."""
    spec = importlib.util.spec_from_file_location("vitrail_native_build", ROOT / "native" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def folder_of(processor: str) -> Path:
    """A folder with the library for one of PROCESSORS, compiled now or by an earlier call. Raises Missing."""
    return cross_library() if processor == "neon" else emulated_library(processor)


def emulated_library(isa: str) -> Path:
    """A folder with the library for this machine in which AVX-512 (and AMX) run, emulated, and say they are there."""
    native = build_module()
    if native.architecture() != "x86_64":
        raise Missing("AVX-512 is emulated on x86-64 only")
    if not Path("/usr/include/simde").is_dir():
        raise Missing("SIMDe is not installed (Debian: libsimde-dev)")
    try:
        compiler = native.compiler()
    except native.CompilerError as error:
        raise Missing(str(error)) from None
    files = []
    for source, flags in _sources(native, "x86_64"):
        if source.name == "detect.cpp":
            source, flags = HERE / "emulated_detect.cpp", [f"-I{native.SOURCES}", f"-DVT_{isa.upper()}"]
        files.append((source, _emulated_flags(native, flags)))
    target = _cache(isa, files)
    return target if _is_built(target) else _built(native, target, cxx=compiler, files=files)


def _sources(native: ModuleType, machine: str) -> list[tuple[Path, list[str]]]:
    """native/build.py's, or those of the areas that are asked for and what all need."""
    chosen = os.environ.get(AREAS)
    files: list[tuple[Path, list[str]]] = native.sources(machine)
    if not chosen:
        return files
    areas = {"cpu", "detect", "pool", *chosen.split(",")}
    return [(source, flags) for source, flags in files if source.stem.partition("_")[0] in areas]


def _emulated_flags(native: ModuleType, flags: list[str]) -> list[str]:
    """Flags without AVX-512 and AMX, which the header that is put before the file emulates."""
    if not any(flag.startswith(("-mavx512", "-mamx")) for flag in flags):
        return flags
    header = ["-include", str(HERE / "emulated.h"), "-Wno-psabi", "-Wno-ignored-attributes"]
    if "-mavx512bf16" in flags:
        header.append("-DVT_EMULATE_BF16")
    if "-mamx-tile" in flags:
        header.append("-DVT_EMULATE_AMX")
    return [*header, *(flag for flag in flags if not flag.startswith(("-mavx512", "-mamx")))]


def cross_library() -> Path:
    """A folder with the library for aarch64 and `remote`, the program that calls it in the emulator."""
    for tool in (CROSS_COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            raise Missing(f"{tool} is not installed")
    native = build_module()
    files = _sources(native, "aarch64")
    target = _cache("neon", files)
    if _is_built(target):
        return target
    room = _built(native, target, cxx=[CROSS_COMPILER], machine="aarch64", files=files)
    command = [CROSS_COMPILER, "-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread", str(HERE / "remote.cpp")]
    subprocess.run([*command, "-ldl", "-o", str(room / "remote.new")], check=True)
    os.replace(room / "remote.new", room / "remote")
    return room


def _is_built(target: Path) -> bool:
    return (target / "build.json").exists() and ("neon" not in target.name or (target / "remote").exists())


def _built(native: ModuleType, target: Path, **how: object) -> Path:
    for old in target.parent.glob(f"{target.name.partition('-')[0]}-*"):
        if old != target and time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
    native.build(target, **how)
    return target


def _cache(name: str, files: list[tuple[Path, list[str]]]) -> Path:
    """A folder named after everything that the build reads, so that nothing is compiled twice."""
    digest = hashlib.sha256(repr([(str(path), flags) for path, flags in files]).encode())
    folders = (ROOT / "native", HERE)
    for path in sorted(
        path for folder in folders for path in folder.iterdir() if path.suffix in (".cpp", ".h")
    ):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return ROOT / ".pytest_cache" / "kernels" / f"{name}-{digest.hexdigest()[:16]}"


def run_tests(processor: str, *arguments: str, seconds: float = 540) -> str:
    """Run pytest with the kernels of another processor in a process of its own; what it printed. Raises Missing."""
    folder_of(processor)
    environment = {**os.environ, ENVIRONMENT: processor, "OMP_NUM_THREADS": "2"}
    environment.pop("VITRAIL_KERNELS", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "tests.native.plugin",
        "-m",
        "not slow",
        "-rs",
    ]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"with {processor}:\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout
