"""`vitrail train` from outside: what it prints, what it leaves behind, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from vitrail.cli.main import main
from vitrail.cli.train import _Bar
from vitrail.train import metrics


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of six conversations, one of them with an image."""
    folder = tmp_path_factory.mktemp("talks")
    tiny.image(16, 24).save(folder / "a.png")
    lines: list[Any] = [
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Hello {n}."}] for n in range(5)
    ]
    parts = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What?"}]
    lines.append(
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A hill."}]}
    )
    (folder / "talks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "talks.jsonl"


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in metrics.read(folder)]


def test_check_counts_and_trains_nothing(
    talks: Path, tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(talks), "--model", str(tiny_llava), "--check"]) == 0
    assert capsys.readouterr().out.startswith("6 conversations, 1 images, ")


def test_bad_lines_are_told_before_training_and_skipped_when_asked(
    talks: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = talks.read_text().splitlines()
    shutil.copy(talks.parent / "a.png", tmp_path)
    data = tmp_path / "bad.jsonl"
    lines[2:2] = ["{", '[{"role": "user", "content": "Hi"}]']
    data.write_text("\n".join(lines) + "\n")
    words = ["train", str(data), "--model", str(tiny_llava)]
    assert main([*words, "--check", "--json"]) == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["conversations"] == 6 and found["bad_lines"] == 2
    assert [fault.split(": ")[1] for fault in found["faults"]] == ["line 3", "line 4"]
    assert "line 3: not valid JSON" in err and "line 4: there is no assistant message" in err
    words += ["--out", str(tmp_path / "out"), "--steps", "1", "--rank", "2"]
    assert main(words) == 2
    assert "2 of 8 lines cannot be used" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--skip-bad"]) == 0


def test_an_adapter_that_loads_and_a_merged_checkpoint(
    talks: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        str(talks),
        "--model",
        str(tiny_llava),
        "--out",
        str(out),
        "--steps",
        "2",
        "--lr",
        "0.05",
        "--rank",
        "2",
    ]
    parts = ["--part", "language_model", "--part", "vision_tower", "--target", r".*\.(q_proj|down_proj)"]
    assert main(["train", *words, *parts, "--merge", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 2 and result["loss"] == losses(out)[-1]
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "checkpoints", "curves.png", "merged", "metrics.jsonl",
    }  # fmt: skip
    model: Any = vitrail.AutoModelForImageTextToText.from_pretrained(tiny_llava)
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        plain = model(ids).logits
        model.load_adapter(out)
        adapted = model(ids).logits
        merged = vitrail.AutoModelForImageTextToText.from_pretrained(out / "merged")(ids).logits
    assert not torch.allclose(adapted, plain)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    vitrail.AutoProcessor.from_pretrained(out / "merged")
    question = ["ask", str(talks.parent / "a.png"), "What?", "--max-new-tokens", "4"]
    assert main([*question, "--model", str(tiny_llava), "--adapter", str(out)]) == 0
    answer = capsys.readouterr().out
    assert main([*question, "--model", str(out / "merged")]) == 0
    assert capsys.readouterr().out == answer


def test_all_weights_of_a_part(talks: Path, tiny_llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "train",
        str(talks),
        "--model",
        str(tiny_llava),
        "--out",
        str(out),
        "--method",
        "full",
        "--part",
        "projector",
    ]
    assert main([*words, "--steps", "1", "--lr", "0.1", "--dtype", "bfloat16", "--bf16"]) == 0
    before = vitrail.AutoModelForImageTextToText.from_pretrained(tiny_llava).state_dict()
    after = vitrail.AutoModelForImageTextToText.from_pretrained(out, dtype="auto").state_dict()
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name].bfloat16())}
    assert changed == {name for name in before if "multi_modal_projector" in name}


def test_over_a_packed_base_with_a_bar(
    talks: Path,
    tiny_llava: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a terminal a bar shows loss, tokens per second and time left."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    words = ["train", str(talks), "--model", str(tiny_llava), "--quantize", "nf4", "--bf16", "--rank", "2"]
    assert main([*words, "--steps", "2", "--out", str(tmp_path / "out")]) == 0
    assert len(losses(tmp_path / "out")) == 2
    shown = capsys.readouterr().err
    assert (
        f"loss {losses(tmp_path / 'out')[-1]:.4f}" in shown
        and "tokens/s" in shown
        and "2/2" in shown
        and "0:00:00" in shown
    )


def test_train_stopped_run_can_be_asked_lengthened_and_says_where_it_goes_on(
    talks: Path,
    tiny_llava: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    words = ["train", str(talks), "--model", str(tiny_llava), "--rank", "2", "--out", str(out)]
    step = _Bar.step

    def stop(self: _Bar, record: dict[str, Any]) -> None:
        step(self, record)
        if record["step"] == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(_Bar, "step", stop)
        assert main([*words, "--steps", "3"]) == 130
    assert f"stopped after step 1; {out} has the adapter so far" in capsys.readouterr().err
    ask = ["ask", str(talks.parent / "a.png"), "What?", "--max-new-tokens", "2", "--model", str(tiny_llava)]
    assert main([*ask, "--adapter", str(out)]) == 0
    capsys.readouterr()
    assert main([*words, "--steps", "3"]) == 0
    assert "vitrail: going on from step 1 of 3" in capsys.readouterr().err
    assert main([*words, "--steps", "4"]) == 0
    assert "vitrail: going on from step 3 of 4" in capsys.readouterr().err
    assert len(losses(out)) == 4
    assert main([*words, "--steps", "2"]) == 2
    assert "has taken 4 steps already" in capsys.readouterr().err


def test_train_without_a_terminal_tells_a_step_now_and_then(
    talks: Path,
    tiny_llava: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitrail.cli.train._TELL_EVERY", 0)
    words = ["train", str(talks), "--model", str(tiny_llava), "--rank", "2", "--out", str(tmp_path / "out")]
    assert main([*words, "--steps", "2"]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "of 2" in line]
    assert [line.split(",")[0] for line in told] == ["vitrail: step 1 of 2", "vitrail: step 2 of 2"]


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_with_the_same_losses(
    talks: Path, tiny_llava: Path, tmp_path: Path
) -> None:
    """SIGKILL in the middle; nothing that loads is left behind; the same command then ends as if nothing had been."""
    words = ["train", str(talks), "--model", str(tiny_llava), "--steps", "40", "--batch", "2", "--rank", "2",
             "--dropout", "0.1", "--save-every", "3"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "part"
    running = subprocess.Popen(
        [sys.executable, "-m", "vitrail", *words, "--out", str(out)], stdout=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 300
        while len(metrics.read(out)) < 8 and running.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
    assert 8 <= len(metrics.read(out)) < 40
    assert not (out / "adapter_config.json").exists()
    assert main([*words, "--out", str(out)]) == 0
    assert losses(out) == losses(tmp_path / "whole")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "part")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--out is missing"),
        (["--out", "x", "--method", "full", "--rank", "4"], "--rank shapes an adapter"),
        (["--out", "x", "--method", "full", "--quantize", "nf4"], "packed weights cannot be trained"),
        (["--out", "x", "--method", "full", "--dtype", "bfloat16"], "need precision 'bf16'"),
        (["--out", "x", "--patience", "2"], "patience and eval_every need conversations"),
        (["--out", "x", "--target", "nothing"], "fits no module"),
        (["--out", "x", "--max-length", "999999"], "longest is a number from 1 to"),
        (["--out", "x", "--format", "v99"], "v99"),
        (["--out", "file"], "file cannot be a folder: file is a file"),
        (["--out", "file/x"], "file/x cannot be a folder: file is a file"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, talks: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    assert main(["train", str(talks), "--model", str(tiny_llava), *words]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_folder_with_a_model_is_not_written_into(
    talks: Path, tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["train", str(talks), "--model", str(tiny_llava), "--out", str(tiny_llava), "--steps", "1"]) == 2
    )
    assert "holds config.json, which is not of this run" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_train_full_disk_is_one_line_and_goes_on_with_room(
    talks: Path, tiny_llava: Path, tmp_path: Path
) -> None:
    """A limit on the size of files refuses the checkpoint of the first step, as a full disk does."""
    import resource

    out = tmp_path / "out"
    words = ["--model", str(tiny_llava), "--out", str(out), "--steps", "2", "--save-every", "1"]
    command = [sys.executable, "-m", "vitrail", "train", str(talks), *words]

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=bound, check=False)
    assert run.returncode == 2
    assert run.stderr == f"vitrail: {out / 'checkpoints'} cannot be written: File too large.\n"
    assert not [*(out / "checkpoints").iterdir()]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert len(losses(out)) == 2


@pytest.mark.parametrize(
    "name", ["state.json", "model.safetensors", "average.safetensors", "optimizers.safetensors"]
)
def test_train_damaged_checkpoint_is_one_line(
    name: str, talks: Path, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        "train",
        str(talks),
        "--model",
        str(tiny_llava),
        "--rank",
        "2",
        "--steps",
        "1",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    (damaged,) = (out / "checkpoints").glob(f"*/{name}")
    damaged.write_bytes(damaged.read_bytes()[:7])
    capsys.readouterr()
    assert main(words) == 2
    err = capsys.readouterr().err
    assert name in err and err.count("\n") == 1
