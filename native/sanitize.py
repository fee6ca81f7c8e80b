"""Runs the kernels' tests with kernels built under AddressSanitizer and UndefinedBehaviorSanitizer.

`python native/sanitize.py` builds the library of this folder into a temporary one, runs the tests of kernels and the fuzzer
of calls with each instruction set that this machine has, and ends with status 1 where a test fails or a sanitizer finds
something, which is printed. Arguments are pytest's, in place of all that ("-k q4 tests/native/test_fuzz.py");
VITRAIL_FUZZ_EXAMPLES makes the fuzzer's calls more. For Linux and GCC; names what is missing, with status 2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
import build  # noqa: E402  (found by the line above)

FLAGS = [
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fsanitize-recover=address",
]
TESTS = (
    "tests/invariants/test_native_*.py",
    "tests/unit/test_operator_checks.py",
    "tests/unit/test_threads.py",
)
FUZZER, EXAMPLES = "tests/native/test_fuzz.py", "60"
KERNELS = "VITRAIL_TEST_FOLDER"  # read by tests/native/sanitized.py


class Missing(Exception):
    """What this machine lacks."""


def runtimes(cxx: list[str]) -> list[str]:
    """The sanitizers' libraries, which must be loaded before everything else."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        said = subprocess.run([*cxx, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        path = Path(said.stdout.strip())
        if not path.is_absolute():
            raise Missing(f"{cxx[0]} has no {name}")
        found.append(str(path.resolve()))
    return found


def build_library(folder: Path, areas: tuple[str, ...] = ()) -> list[str]:
    """Compile the library, or its files of some areas alone, into `folder`; what to preload with it. Raises Missing."""
    if not sys.platform.startswith("linux"):
        raise Missing("the sanitizers' library is preloaded on Linux only")
    try:
        cxx = build.compiler()
    except build.CompilerError as error:
        raise Missing(str(error)) from None
    preload = runtimes(cxx)
    files = [
        (source, [*flags, *FLAGS])
        for source, flags in build.sources(build.architecture())
        if not areas or source.stem.partition("_")[0] in (*areas, "cpu", "detect", "pool")
    ]
    build.build(folder, cxx=[*cxx, "-fsanitize=address,undefined"], files=files)
    return preload


def run_tests(folder: Path, preload: list[str], arguments: list[str]) -> int:
    """pytest with the library of `folder`: 0 where all tests pass and nothing was found."""
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    where = f"log_path={logs / 'found'}"
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=0:{where}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:{where}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]),
        KERNELS: str(folder),
        "VITRAIL_FUZZ_EXAMPLES": os.environ.get("VITRAIL_FUZZ_EXAMPLES", EXAMPLES),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.native.sanitized",
    ]
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=False)
    reports = sorted(logs.iterdir())
    for path in reports:
        sys.stderr.write(path.read_text(errors="replace"))
        path.unlink()
    sys.stderr.write(f"the sanitizers found {'something, see above' if reports else 'nothing'}.\n")
    return 1 if reports or done.returncode else 0


def main(arguments: list[str]) -> int:
    """Build, run, clean up."""
    tests = [str(path) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    runs = [arguments] if arguments else [["-m", "not slow", *tests], [FUZZER]]
    folder = Path(tempfile.mkdtemp(prefix="vitrail-sanitized-"))
    try:
        preload = build_library(folder)
        return max([run_tests(folder, preload, run) for run in runs])
    except Missing as reason:
        sys.stderr.write(f"no sanitized run: {reason}.\n")
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
