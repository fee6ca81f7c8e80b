"""`vitrail bench`: every benchmark runs on the tiny geometry and says what it must; no figure is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vitrail.bench.geometries import NAMES
from vitrail.bench.random_model import FORMATS
from vitrail.cli import bench as command
from vitrail.cli.main import main

MACHINE = {"cpu", "cores", "memory", "torch", "torch_isa", "library", "instructions", "threads", "page_bytes"}
MEASURED = {
    "what", "tokens", "seconds", "tokens_per_second", "bytes", "flop", "limit", "limit_per_second", "share",
    "lowest_share", "highest_share",
}  # fmt: skip
QUICK = ("--geometry", "tiny", "--threads", "1", "--repeat", "1")


@pytest.fixture(autouse=True)
def threads() -> Any:
    """--threads changes the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """told(arguments…) → the JSON object."""

    def run(*arguments: str) -> dict[str, Any]:
        assert main(["bench", *arguments, *QUICK, "--json"]) == 0
        record: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert set(record["machine"]) == MACHINE
        assert all(set(one) >= MEASURED for one in record["measured"])
        return record

    return run


def test_decode_measures_every_number_of_rows(told: Any) -> None:
    record = told("decode", "--rows", "1,3", "--context", "40", "--format", "f32")
    assert (record["benchmark"], record["layers"], record["context"]) == ("decode", 2, 40)
    one, three = record["measured"]
    assert (one["tokens"], three["tokens"]) == (1, 3)
    # Two more rows read two more caches: keys and values, 2 layers, 2 heads of 16, float32.
    assert three["bytes"] - one["bytes"] == 2 * 40 * (2 * 2 * 2 * 16 * 4)
    assert one["limit"] == "streaming read"
    assert 0 < one["lowest_share"] <= one["share"] <= one["highest_share"]


def test_prefill_counts_every_product(told: Any) -> None:
    record = told("prefill", "--rows", "8", "--layers", "1", "--format", "f32")
    (one,) = record["measured"]
    matrices = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128
    pairs = 8 * 9 // 2  # of positions that see each other
    assert one["flop"] == 2 * 8 * matrices + 2 * 512 * 64 + 4 * 64 * pairs
    assert one["limit"] == "matrix products"


def test_vision_measures_every_number_of_images(told: Any) -> None:
    record = told("vision", "--side", "70", "--images", "1,2", "--format", "f32")
    one, two = record["measured"]
    assert "64 × 64" in one["what"]  # whole patches
    assert (one["tokens"], two["tokens"]) == (16, 32)
    assert two["flop"] == 2 * one["flop"]


@pytest.mark.slow  # two rounds of processes that import torch
def test_load_says_where_memory_went(told: Any, tmp_path: Path) -> None:
    record = told("load", "--folder", str(tmp_path), "--format", "bf16")
    assert record["file_bytes"] > 2 * 100_000
    assert record["first_token_process_seconds"] > record["load_seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_e2e_has_every_stage(told: Any) -> None:
    record = told("e2e", "--side", "64", "--format", "bf16")
    assert [one["what"] for one in record["measured"]] == [
        "vision tower and projector", "prompt read", "answer, per token",
    ]  # fmt: skip
    assert record["image_tokens"] == 4 * 5
    assert record["seconds_to_first_token"] > record["measured"][0]["seconds"]


def test_a_person_sees_the_machine_the_work_and_the_share(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", *QUICK, "--format", "bf16"]) == 0
    out = capsys.readouterr().out
    for said in ("cores, 1 threads", "torch", "to read", "GB/s (streaming read", "of the limit (median"):
        assert said in out


@pytest.mark.parametrize("rows", ["0", "1,", "many", "-1"])
def test_rows_that_are_no_numbers_are_a_mistake(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--rows", rows, *QUICK]) == 2
    assert "not a list of whole numbers" in capsys.readouterr().err


def test_the_command_knows_the_geometries_and_formats_without_importing_them() -> None:
    assert set(command.GEOMETRIES) == set(NAMES)
    assert command.FORMATS == FORMATS


@pytest.mark.parametrize("what", ["decode", "prefill", "vision", "load", "e2e"])
def test_bench_tells_what_it_does_from_the_start(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    monkeypatch.setattr("vitrail.cli.screen.Waiting.say", lambda self, text: said.append(text))
    monkeypatch.setattr("vitrail.bench.load._turn", lambda place, threads: {"load_seconds": 1.0})
    assert main(["bench", what, *QUICK[:-1], "2"]) == 0
    assert said[0] == "starting"
    assert "making weights" in said[1] or "writing the checkpoint" in said[1]
    assert [text.rpartition(": ")[2] for text in said[-2:]] == ["turn 1 of 2", "turn 2 of 2"]
