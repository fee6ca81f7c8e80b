"""Building the kernels: each file's flags, what is noted where they cannot be built, and what wheel and sdist hold."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.native import harness

ROOT = Path(__file__).parents[2]
NATIVE = harness.build_module()
SUFFIXES = {"avx2", "avx512", "amx", "neon"}


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """native/build.py over two small sources, and without settings of this machine."""
    for name in ("CXX", "VITRAIL_BUILD"):
        monkeypatch.delenv(name, raising=False)
    module = harness.build_module()
    sources = tmp_path / "native"
    sources.mkdir()
    (sources / "one.cpp").write_text('extern "C" int one() { return 1; }\n', encoding="utf-8")
    (sources / "two_avx2.cpp").write_text('extern "C" int two() { return 2; }\n', encoding="utf-8")
    (sources / "two_neon.cpp").write_text('extern "C" int two() { return 2; }\n', encoding="utf-8")
    monkeypatch.setattr(module, "SOURCES", sources)
    return module


def note(target: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((target / "build.json").read_text("utf-8"))
    return found


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_flags_follow_the_files_names() -> None:
    flags = {path.name: NATIVE.flags_of(path, "x86_64") for path in NATIVE.SOURCES.glob("*.cpp")}
    assert flags["pool.cpp"] == flags["rows.cpp"] == flags["rows_portable.cpp"] == []
    assert flags["rows_neon.cpp"] is None
    assert "-mavx2" in flags["rows_avx2.cpp"] and "-mavx512f" not in flags["rows_avx2.cpp"]
    assert "-mavx512vnni" in flags["rows_avx512.cpp"] and "-mamx-tile" not in flags["rows_avx512.cpp"]
    assert NATIVE.flags_of(Path("rows_neon.cpp"), "aarch64") == ["-march=armv8.2-a+dotprod"]
    for machine in ("aarch64", "riscv64"):
        for path in NATIVE.SOURCES.glob("*.cpp"):
            suffix = path.stem.rpartition("_")[2]
            belongs = suffix not in SUFFIXES or (machine == "aarch64" and suffix == "neon")
            assert (NATIVE.flags_of(path, machine) is not None) == belongs


def test_nothing_is_compiled_for_this_machine_alone_nor_contracted() -> None:
    """-march=native would break on the next machine; contraction would change the bits of q4."""
    every = [
        *NATIVE.COMMON,
        *(flag for flags in (*NATIVE.X86.values(), *NATIVE.ARM.values()) for flag in flags),
    ]
    assert not [flag for flag in every if "native" in flag or "fast" in flag]
    assert "-ffp-contract=off" in NATIVE.COMMON


def test_a_build_and_its_note(native: ModuleType, tmp_path: Path) -> None:
    try:
        native.compiler()
    except native.CompilerError as reason:
        pytest.skip(str(reason))
    library = native.build(tmp_path / "made")
    assert library.name == native.LIBRARY and library.stat().st_size > 0
    found = note(tmp_path / "made")
    assert found["error"] is None and found["compiler"] and found["architecture"] == native.architecture()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["build.json", native.LIBRARY]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-ins for compilers are shell scripts")
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"VITRAIL_BUILD": "off"}, "VITRAIL_BUILD=off was set when Vitrail was installed"),
        ({"VITRAIL_BUILD": "0"}, "VITRAIL_BUILD=off was set when Vitrail was installed"),
        ({"CXX": "nowhere/c++"}, "nowhere/c++, was not found"),
        ({"CXX": "nowhere c++"}, "nowhere c++, was not found"),
        ({"PATH": ""}, "no C++ compiler (c++, g++ or clang++) was found"),
        ({"CXX": "{broken}"}, "broken failed on one.cpp: one.cpp:1: error: this compiler is broken"),
        ({"CXX": "{silent} -v"}, "silent failed on one.cpp: it did not say why"),
    ],
)
def test_without_a_working_compiler_the_reason_is_noted(
    settings: dict[str, str],
    reason: str,
    native: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = script(
        tmp_path / "broken",
        "echo some.h: In file included >&2\necho one.cpp:1: error: this compiler is broken >&2\nexit 1",
    )
    silent = script(tmp_path / "silent", "exit 1")
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(broken=broken, silent=silent))
    target = tmp_path / "made"
    target.mkdir()
    (target / native.LIBRARY).write_bytes(b"of an older build")
    assert native.build_if_possible(target) is None
    found = note(target)
    assert reason in found["error"] and "\n" not in found["error"] and found["compiler"] is None
    assert not (target / native.LIBRARY).exists()


def test_a_compiler_with_words_before_it(
    native: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("c++") or shutil.which("g++")
    if real is None or sys.platform == "win32":
        pytest.skip("no C++ compiler")
    wrapper = script(tmp_path / "ccache", 'exec "$@"')
    monkeypatch.setenv("CXX", f"{wrapper} {real}")
    assert native.build_if_possible(tmp_path / "made") is not None


# --- the package ------------------------------------------------------------------------------------------------------


def copied(target: Path) -> Path:
    """What a build of the package reads, without what earlier builds left."""
    for name in ("native", "src/vitrail"):
        leave = shutil.ignore_patterns("__pycache__", "_kernels", "*.so")
        shutil.copytree(ROOT / name, target / name, ignore=leave)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target / name)
    return target


def wheel(source: Path, target: Path, **settings: str) -> zipfile.ZipFile:
    """The wheel that pip builds, without the network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run(
        [*command, "-w", str(target), str(source)],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
    )
    (made,) = target.glob("*.whl")
    return zipfile.ZipFile(made)


def told(unpacked: Path) -> dict[str, Any]:
    """What `vitrail info --system --json` of an unpacked wheel says of its kernels."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    environment.pop("VITRAIL_KERNELS", None)
    done = subprocess.run(
        [sys.executable, "-m", "vitrail", "info", "--system", "--json"],
        env=environment,
        cwd=unpacked,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)["kernels"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"VITRAIL_BUILD": "off"}, "VITRAIL_BUILD=off"), ({"CXX": "/nowhere/c++"}, "was not found")],
)
def test_without_a_compiler_the_wheel_is_whole(settings: dict[str, str], reason: str, tmp_path: Path) -> None:
    """It is for any platform, tells why it has no kernels, and answers as it is."""
    source = copied(tmp_path / "source")
    with wheel(source, tmp_path / "wheels", **settings) as made:
        names = made.namelist()
        made.extractall(tmp_path / "unpacked")
    assert next((tmp_path / "wheels").glob("*.whl")).name.endswith("-py3-none-any.whl")
    assert [name for name in names if "_kernels" in name] == ["vitrail/ops/_kernels/build.json"]
    kernels = told(tmp_path / "unpacked")
    assert kernels["used"] is None and reason in kernels["reason"]
    done = subprocess.run(
        [sys.executable, "-m", "vitrail", "ask", str(ROOT / "examples" / "sign.png"), "What does it say?"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "unpacked")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() and not done.stderr.strip()


@pytest.mark.slow
def test_the_wheel_with_kernels(tmp_path: Path) -> None:
    """Its tag is this platform's and any Python's; the library in it opens. From the sdist, as an installer builds it."""
    try:
        NATIVE.compiler()
    except NATIVE.CompilerError as reason:
        pytest.skip(str(reason))
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    source = copied(tmp_path / "source")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = packed.getnames()
        packed.extractall(tmp_path / "sdist", filter="data")
    (folder,) = (tmp_path / "sdist").iterdir()
    for path in (ROOT / "native").glob("*.*"):
        assert f"{folder.name}/native/{path.name}" in names
    assert not [name for name in names if "_kernels" in name]
    for path in (folder / "native").glob("*.cpp"):  # one area shows it; all of them take half a minute
        if path.stem.partition("_")[0] not in ("cpu", "detect", "pool", "rows"):
            path.unlink()
    with wheel(folder, tmp_path / "wheels") as made:
        kept = sorted(name for name in made.namelist() if "_kernels" in name)
        made.extractall(tmp_path / "unpacked")
    assert kept == ["vitrail/ops/_kernels/build.json", f"vitrail/ops/_kernels/{NATIVE.LIBRARY}"]
    name = next((tmp_path / "wheels").glob("*.whl")).name
    assert "-py3-none-" in name and not name.endswith("-any.whl")
    assert NATIVE.architecture() in name or "amd64" in name or "arm64" in name
    assert told(tmp_path / "unpacked")["used"] is not None
