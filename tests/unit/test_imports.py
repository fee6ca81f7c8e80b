"""What importing costs and promises: nothing heavy at the door, every name found, every module importable."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import vitrail

HEAVY = (
    "torch",
    "numpy",
    "PIL",
    "tokenizers",
    "mistral_common",
    "huggingface_hub",
    "jinja2",
    "safetensors",
    "rich",
)
OPTIONAL = (
    "accelerate",
    "bitsandbytes",
    "cv2",
    "hypothesis",
    "matplotlib",
    "mistral_common",
    "pypdfium2",
    "pytest",
    "requests",
    "torchvision",
    "transformers",
)
HOMES = {name: home for home, names in vitrail._HOMES.items() for name in names}


def python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_vitrail_brings_nothing_heavy() -> None:
    """`import vitrail` is a table look-up."""
    code = f"import sys, vitrail; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python(code).strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        *([name, "--help"] for name in ("ask", "chat", "info", "quantize", "tokens", "train")),
    ],
)
def test_help_brings_nothing_heavy(arguments: list[str]) -> None:
    """Asking for help does not wait for torch."""
    code = f"""
import sys
from vitrail.cli.main import main
status = main({arguments!r})
print()
print(status, [m for m in {HEAVY!r} if m in sys.modules])
"""
    assert python(code).strip().splitlines()[-1] == "0 []"


@pytest.mark.parametrize("name", sorted(HOMES))
def test_every_public_name_is_found(name: str) -> None:
    """The lazy table tells the truth: the name is in its home, and `vitrail` gives that very object."""
    assert getattr(vitrail, name) is getattr(import_module(f"vitrail.{HOMES[name]}"), name)


def test_public_names_are_listed_once() -> None:
    """No name has two homes, and `__all__` and `dir()` list them all."""
    assert len(HOMES) == sum(len(names) for names in vitrail._HOMES.values())
    assert set(vitrail.__all__) == {"__version__", *HOMES}
    assert set(vitrail.__all__) <= set(dir(vitrail))


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers, read from the source, agree with the table."""
    tree = ast.parse(Path(vitrail.__file__).read_text("utf-8"))
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("vitrail.")
        and "._" not in node.module
        for alias in node.names
    }
    assert seen == {name: f"vitrail.{home}" for name, home in HOMES.items()}


def test_unknown_name_is_an_attribute_error() -> None:
    """Tab completion, hasattr() and `from vitrail import nonsense` behave."""
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vitrail.nonsense
    with pytest.raises(ImportError):
        exec("from vitrail import nonsense")


def test_pipeline_stays_a_function() -> None:
    """No submodule shares the name of a public function, in whatever order things are imported."""
    code = (
        "import vitrail.pipelines, vitrail.auto, vitrail.generate, vitrail; from vitrail import pipeline; "
        "print(callable(pipeline), callable(vitrail.pipeline))"
    )
    assert python(code).strip() == "True True"


@pytest.mark.slow
def test_every_module_imports_without_optional_packages() -> None:
    """A minimal install imports every module of the package."""
    code = f"""
import importlib, pkgutil, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
import vitrail
count = 0
for module in pkgutil.walk_packages(vitrail.__path__, "vitrail."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
print(count > 40)
"""
    assert python(code).strip() == "True"


def test_a_missing_optional_package_is_named_with_its_extra(tmp_path: Path) -> None:
    """Using what an absent package brings says which extra to install."""
    (tmp_path / "tekken.json").write_text("{}")
    code = f"""
import sys
sys.modules["mistral_common"] = None
import vitrail
try:
    vitrail.MistralCommonTokenizer.from_pretrained({str(tmp_path)!r})
except vitrail.MissingPackageError as error:
    print(error)
"""
    assert "vitrail[mistral]" in python(code)
