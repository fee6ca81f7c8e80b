"""benchmarks/peers: sides take turns, ratios are of each turn, and a worker answers until it is closed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"

pytestmark = pytest.mark.skipif(not PEERS.is_dir(), reason="benchmarks/ is not part of an installed package")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sides_alternate_and_begin_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The side that always came second would always find the caches the other one left."""
    turns = script("turns")
    monkeypatch.setattr(turns, "await_quiet", lambda: 0.0)
    seen: list[str] = []

    def side(name: str, value: float) -> Any:
        def run() -> float:
            seen.append(name)
            return value

        return run

    found = turns.interleaved({"a": side("a", 1.0), "b": side("b", 3.0)}, 3)
    assert "".join(seen) == "abbaab"
    assert found == {"a": [1.0] * 3, "b": [3.0] * 3, "busy": [0.0] * 3}
    assert turns.ratio(found, "b", "a") == {"median": 3.0, "lowest": 3.0, "highest": 3.0}


def test_the_ratio_is_of_each_turn() -> None:
    assert script("turns").ratio({"a": [1.0, 2.0, 8.0], "b": [2.0, 4.0, 4.0]}, "b", "a")["median"] == 2.0


def test_a_worker_answers_until_it_is_closed(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(
        f"import sys; sys.path.insert(0, {str(PEERS)!r})\n"
        "from worker import serve\n"
        "print('a library says hello')\n"
        "serve({'peer': 'twice'}, {'double': lambda number: {'seconds': 2 * number}})\n"
    )
    worker = script("worker").Worker(sys.executable, str(tmp_path / "twice.py"))
    assert worker.about == {"peer": "twice"}
    assert [worker.ask("double", number=n)["seconds"] for n in (1, 5)] == [2, 10]
    worker.close()


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(SystemExit, match="ended with status 3"):
        script("worker").Worker(sys.executable, str(tmp_path / "broken.py"))
