"""`vitrail chat` from outside: answers and what they cost, commands, files, mistakes; on a terminal and from a pipe."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrail
from tests import pdfs, tiny
from vitrail.cli.interrupt import Stop, stoppable
from vitrail.cli.main import main
from vitrail.cli.transcript import load_messages, save_messages
from vitrail.errors import InputError, PromptError

Talk = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sign(tmp_path: Path) -> str:
    """An image file of 60×90 pixels (height×width)."""
    tiny.image(60, 90).save(tmp_path / "sign.png")
    return str(tmp_path / "sign.png")


@pytest.fixture
def talk(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """talk(lines, *words): run `vitrail chat` with these lines from a pipe → status, stdout, stderr."""

    def run(lines: list[str], *words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status = main(["chat", "--model", str(tiny_llava), "--max-new-tokens", "5", *words])
        return (status, *capsys.readouterr())

    return run


def records(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def expected(model: Path, messages: list[dict[str, Any]]) -> str:
    """The answer through the Python API, from a fresh start."""
    processor = vitrail.AutoProcessor.from_pretrained(model)
    network = vitrail.AutoModelForImageTextToText.from_pretrained(model)
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = network.generate(**inputs, max_new_tokens=5, do_sample=False)
    text: str = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def test_the_second_turn_about_an_image_computes_only_its_own_tokens(
    talk: Talk, sign: str, tiny_llava: Path
) -> None:
    """One JSON line a turn; what is reused, computed and encoded stands in it, and the answers are the API's."""
    status, out, err = talk([f"/image {sign}", "What does it say?", "And below?", "/stats"], "--json")
    first, second, stats = records(out)
    assert status == 0
    assert "1 image, 104 tokens" in err
    costs = first["tokens"]
    assert (costs["reused"], costs["computed"], costs["images"]) == (0, costs["prompt"], [104])
    assert first["images_encoded"] == 1
    again = second["tokens"]
    assert again["reused"] + again["computed"] == again["prompt"]
    assert again["reused"] >= costs["prompt"]
    assert (second["images_encoded"], again["images"]) == (0, [104])
    assert set(second["seconds"]) == {"prepare", "first_token", "total"}
    assert stats["stats"]["encoded"] == 1
    assert stats["stats"]["computed"] == costs["computed"] + again["computed"]
    question = [{"type": "image", "path": sign}, {"type": "text", "text": "What does it say?"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    assert first["text"] == expected(tiny_llava, messages)
    messages += [{"role": "assistant", "content": first["text"]}, {"role": "user", "content": "And below?"}]
    assert second["text"] == expected(tiny_llava, messages)


def test_standard_output_holds_the_answers_only(talk: Talk, sign: str) -> None:
    """What commands say goes to standard error, whatever they are."""
    lines = [
        "/system Be brief.",
        "Hello.",
        "/retry",
        "/history",
        "/stats",
        "/system",
        "/image",
        "/help",
        "/quit",
        "never",
    ]
    status, out, err = talk(lines)
    assert status == 0
    texts = [record["text"] for record in records(talk(["Hello."], "--json", "--system", "Be brief.")[1])]
    assert out == (texts[0] + "\n") * 2
    for shown in (
        "set, for",
        "user: Hello.",
        "system: Be brief.",
        "1 computed",
        "no image waits",
        "/image PATH",
    ):
        assert shown in err


def test_messages_of_several_lines(talk: Talk, tmp_path: Path) -> None:
    """Three quotes, a backslash, a slash behind a space; blank lines are none."""
    path = tmp_path / "talk.json"
    lines = [
        '"""',
        "one",
        "",
        "two",
        '"""',
        "",
        "three\\",
        "four",
        ' /five "is" text',
        '"""six"""',
        f"/save {path}",
    ]
    assert talk(lines)[0] == 0
    asked = [m["content"] for m in load_messages(str(path)) if m["role"] == "user"]
    assert asked == ["one\n\ntwo", "three\nfour", '/five "is" text', "six"]


def test_a_conversation_is_saved_and_loaded(
    talk: Talk, sign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_llava: Path
) -> None:
    """What follows is what would have followed; `vitrail ask` and `vitrail prompt` read the file too."""
    path = tmp_path / "talk.json"
    _, out, _ = talk([f"/image '{sign}'", "Read.", f"/save {path}", "And?"], "--json")
    saved = json.loads(path.read_text("utf-8"))
    assert list(saved) == ["messages"]
    assert saved["messages"][0]["content"][0] == {"type": "image", "path": sign}
    wanted = records(out)[1]
    (after,) = records(talk(["And?"], "--json", "--load", str(path))[1])
    assert (after["text"], after["tokens"]["prompt"]) == (wanted["text"], wanted["tokens"]["prompt"])
    (inside,) = records(talk([f"/load {path}", "And?"], "--json")[1])
    assert inside["text"] == wanted["text"]
    words = ["And?", "--conversation", str(path), "--model", str(tiny_llava), "--max-new-tokens", "5"]
    assert main(["ask", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == wanted["text"]
    assert main(["prompt", str(path), "--tokenizer", str(tiny_llava), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grids"] == [[8, 12]]


def test_a_question_without_an_answer_is_loaded_and_answered(talk: Talk, tmp_path: Path) -> None:
    """/retry answers the last question of a file."""
    path = tmp_path / "asked.json"
    path.write_text(json.dumps([{"role": "user", "content": "Hello."}]))
    _, out, err = talk([f"/load {path}", "/retry"])
    assert "/retry answers it" in err
    assert out == talk(["Hello."])[1]


def test_a_file_is_replaced_only_when_that_is_asked_for(talk: Talk, tmp_path: Path) -> None:
    """A file of this run may be written again; another one needs /save!."""
    path = tmp_path / "talk.json"
    path.write_text("mine")
    status, _, err = talk(["Hello.", f"/save {path}"])
    assert (status, path.read_text()) == (2, "mine")
    assert "line 2 of standard input" in err and "/save!" in err and err.count("\n") == 1
    assert talk(["Hello.", f"/save! {path}", "Again.", f"/save {path}"])[0] == 0
    assert len(load_messages(str(path))) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_saving_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves the old file and nothing beside it."""
    path = tmp_path / "talk.json"
    save_messages([{"role": "user", "content": "ü"}], str(path))

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        save_messages([], str(path), overwrite=True)
    assert load_messages(str(path)) == [{"role": "user", "content": "ü"}]
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="is a folder"):
        save_messages([], str(tmp_path))
    with pytest.raises(InputError, match="cannot be written"):
        save_messages([], str(tmp_path / "none" / "talk.json"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("{", "not valid JSON"),
        ("[1]", "expected a list of messages"),
        ('{"a": 1}', "expected a list of messages"),
        ("[]\n[]", "2 conversations"),
        (json.dumps([{"role": "user", "content": "x"}] * 10_001), "10,001 messages; at most 10,000"),
        (
            json.dumps([{"role": "user", "content": [{"type": "image"}] * 1001}]),
            "1,001 images; at most 1,000",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_cannot_be_loaded(content: str, words: str, tmp_path: Path) -> None:
    """One sentence with the file's name."""
    path = tmp_path / "talk.json"
    path.write_text(content)
    with pytest.raises((InputError, PromptError), match=re.escape(words)):
        load_messages(str(path))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["/imge x.png"], "there is no command /imge; did you mean /image?"),
        (["/image none.png"], "There is no file"),
        (["/retry"], "nothing was asked"),
        (["/save"], "needs the name of a file"),
        (["/save x.json"], "nothing to save"),
        (["/load none.json"], "cannot be read"),
        (["Hello.", '"""', "without an end"], "has no end"),
        (["word " * 9000], "positions"),
    ],
)
def test_a_mistake_in_a_pipe_ends_it(talk: Talk, lines: list[str], words: str) -> None:
    """Status 2 and one line on stderr that names the line."""
    status, _, err = talk(lines)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1 and err.startswith("vitrail: line ")


def test_mistakes_on_the_command_line(talk: Talk, tmp_path: Path) -> None:
    """Told before anything is read from standard input."""
    assert "standard input is the conversation" in talk([], "-")[2]
    assert "--seed needs --temperature" in talk([], "--seed", "3")[2]
    (tmp_path / "scan.pdf").write_bytes(pdfs.pdf((9, 9, pdfs.RED), encrypted=True))
    status, out, err = talk(["Read."], str(tmp_path / "scan.pdf"))
    assert (status, out) == (2, "")
    assert "scan.pdf' is encrypted" in err and err.count("\n") == 1


def test_a_pdf_counts_as_its_pages(talk: Talk, tmp_path: Path) -> None:
    """Given on the command line or by /image; it is saved as one file."""
    scan, path = tmp_path / "scan.bin", tmp_path / "talk.json"
    scan.write_bytes(pdfs.pdf((36, 36, pdfs.RED), (36, 72, pdfs.BLUE)))
    _, out, _ = talk(["Read.", "And?", f"/save {path}"], str(scan), "--json")
    first, second = records(out)
    assert (len(first["tokens"]["images"]), first["images_encoded"]) == (2, 2)
    assert second["images_encoded"] == 0
    assert load_messages(str(path))[0]["content"][0] == {"type": "file", "path": str(scan)}
    status, _, err = talk([f"/image {scan}"], "--pdf-pages", "1")
    assert status == 2 and "has 2 pages; at most 1" in err


def test_draws_differ_from_retry_to_retry(talk: Talk) -> None:
    """From one seed: the same run gives the same answers, a retry another one."""
    words = ("--json", "--temperature", "3", "--seed", "1")
    first, second = (records(talk(["Hello.", "/retry", "/clear", "Hello."], *words)[1]) for _ in range(2))
    texts = [record["text"] for record in first]
    assert texts == [record["text"] for record in second]
    assert texts[0] != texts[1]
    assert texts[2] == texts[0]


def test_the_first_interruption_ends_the_answer_and_the_second_everything() -> None:
    """Before the first id there is no answer to end, so the first one interrupts."""
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop() is False
        signal.raise_signal(signal.SIGINT)
        assert stop() is True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert isinstance(stop, Stop)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX terminals")
def test_on_a_terminal(tiny_llava: Path, tmp_path: Path) -> None:
    """Ctrl-C ends the answer and keeps the conversation, a mistake is told, Ctrl-D leaves with status 0."""
    path, model = tmp_path / "talk.json", tmp_path / "model"
    shutil.copytree(tiny_llava, model)
    settings = json.loads((model / "generation_config.json").read_text("utf-8"))
    (model / "generation_config.json").write_text(
        json.dumps({**settings, "eos_token_id": 0})
    )  # it never ends by itself
    words = ["chat", "--model", str(model), "--max-new-tokens", "3500"]
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vitrail", *words],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        preexec_fn=_interruptible,
        env={**os.environ, "TERM": "dumb"},
    ) as process:
        os.close(follower)
        screen = Screen(leader)
        try:
            screen.wait_for("/help explains")
            screen.wait_for("> ")
            screen.type("Hello.\n")
            screen.wait_for("Hello.\r\n", more=60)
            process.send_signal(signal.SIGINT)
            screen.wait_for("is part of the conversation")
            screen.wait_for("> ")
            screen.type("/nonsense\n")
            screen.wait_for("there is no command /nonsense")
            screen.wait_for("> ")
            screen.type(f"/save {path}\n")
            screen.wait_for("2 messages are in")
            screen.wait_for("> ")
            screen.type("\x04")
            assert process.wait(timeout=120) == 0
        finally:
            process.kill()
    os.close(leader)
    asked, answered = load_messages(str(path))
    assert asked == {"role": "user", "content": "Hello."}
    assert answered["role"] == "assistant" and answered["content"]


class Screen:
    """The other side of a terminal: types, and waits for what is shown."""

    def __init__(self, leader: int) -> None:
        self.leader, self.shown = leader, ""

    def type(self, text: str) -> None:
        os.write(self.leader, text.encode())

    def wait_for(self, text: str, more: int = 0) -> None:
        """Until `text` and `more` characters after it were shown since the last time."""
        deadline = time.monotonic() + 120
        while len(self.shown.partition(text)[2]) < more or text not in self.shown:
            ready, _, _ = select.select([self.leader], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.shown
            self.shown += os.read(self.leader, 65536).decode("utf-8", "replace")
        self.shown = self.shown.partition(text)[2]


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
