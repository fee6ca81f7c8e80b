"""The contracts of pyproject.toml leave the engine its two places: its core below model, its frontend above auto."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vitrail

pytest.importorskip("importlinter")
PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        (None, ""),
        ("engine/core/runner.py", "import vitrail.model.vlm"),
        ("engine/core/runner.py", "import vitrail.engine.frontend.session"),
        ("engine/frontend/session.py", "import vitrail.dialogue"),
        ("model/decoder.py", "import vitrail.engine.frontend.session"),
    ],
)
def test_the_engine_has_two_layers(tmp_path: Path, file: str | None, wrong: str) -> None:
    house = tmp_path / "vitrail"
    shutil.copytree(Path(vitrail.__file__).parent, house, ignore=lambda _, names: [
        name for name in names if "." in name and not name.endswith(".py")
    ])  # fmt: skip
    for name, code in {
        "engine/__init__.py": "",
        "engine/core/__init__.py": "",
        "engine/core/runner.py": "import vitrail.generate.protocol\nimport vitrail.ops.batch\n",
        "engine/frontend/__init__.py": "",
        "engine/frontend/session.py": "import vitrail.engine.core.runner\n"
        "import vitrail.auto, vitrail.processor.processor\n",
    }.items():
        path = house / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""A part of the engine."""\n{code}', encoding="utf-8")
    rights = {"model/causal.py": "import vitrail.engine.core.runner"}
    rights |= dict.fromkeys(("dialogue.py", "cli/ask.py"), "import vitrail.engine.frontend.session")
    for name, code in (*rights.items(), *([] if file is None else [(file, wrong)])):
        with (house / name).open("a", encoding="utf-8") as text:
            text.write(f"\n{code}\n")
    found = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()",
         "--no-cache", "--config", str(PROJECT / "pyproject.toml")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (found.returncode == 0) is (file is None), found.stdout + found.stderr
    if file is not None:
        assert f"{file[:-3].replace('/', '.')} -> {wrong.removeprefix('import ')}" in found.stdout
