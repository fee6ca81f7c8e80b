"""`vitrail prompt`: the recordings come out line by line; what is shown, what differs, what is refused."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.prompts import RECORDED, records, tokenizer_file
from vitrail.cli.main import main

CHAT = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": "size:20x12"}},
            {"type": "text", "text": "What is [INST]?\n"},
        ],
    },
]


def write(folder: Path, *values: Any, name: str = "chat.json") -> str:
    """A file with one JSON value a line."""
    path = folder / name
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
    return str(path)


@pytest.mark.parametrize("version", ["v7m1", pytest.param("v13", marks=pytest.mark.slow)])
def test_recordings_come_out(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ids, text and grids of mistral-common, from a file of conversations as they were recorded."""
    chosen = records(version)[::8]
    file = write(tmp_path, *chosen, name="chats.jsonl")
    assert main(["prompt", file, "--tokenizer", str(tokenizer_file(version)), "--json"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.rstrip("\n").split("\n")]
    assert lines == [{key: record[key] for key in ("ids", "text", "grids")} for record in chosen]
    assert err == ""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v3-tekken", "v7", "v7-tekken", "v11", "v15"])
def test_all_recordings_come_out(version: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole files, as they are."""
    file = RECORDED / f"{version}.jsonl"
    assert main(["prompt", str(file), "--tokenizer", str(tokenizer_file(version)), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.rstrip("\n").split("\n")]
    assert lines == [{key: record[key] for key in ("ids", "text", "grids")} for record in records(version)]


def test_what_a_person_sees(tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Number of ids, grids, the prompt with images as grids, and what only looks like a control token."""
    file = write(tmp_path, CHAT)
    assert main(["prompt", file, "--tokenizer", str(tiny_llava), "--format", "v7-tekken", "--ids"]) == 0
    lines = capsys.readouterr().out.split("\n")
    ids = lines[-2].split()
    assert lines[0] == f"{len(ids)} ids, 1 image (2×3), v7-tekken"
    assert lines[1] == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST][IMG 2×3]What is [INST]?"
    assert lines[3] == "as text, not as control tokens: [INST] ×1"
    assert main(["prompt", file, "--tokenizer", str(tiny_llava), "--format", "v7-tekken", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(map(str, record["ids"])) == ids
    assert record["grids"] == [[2, 3]]


def test_the_checkpoints_template_is_the_default(
    tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the ids that the processor makes of a real image of that size."""
    import vitrail
    from tests import tiny

    processor = vitrail.AutoProcessor.from_pretrained(tiny_llava)
    image = {"type": "image", "image": tiny.image(12, 20)}
    user = {"role": "user", "content": [image, {"type": "text", "text": "What is [INST]?"}]}
    out = processor.apply_chat_template(
        [user], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    user["content"][0] = {"type": "image_url", "image_url": {"url": "size:20x12"}}
    assert main(["prompt", write(tmp_path, [user]), "--tokenizer", str(tiny_llava), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == out["input_ids"][0].tolist()


def test_differences_are_shown(tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run by run: what one format has and the other has not."""
    words = [
        "prompt",
        write(tmp_path, CHAT),
        "--tokenizer",
        str(tiny_llava),
        "--format",
        "v7-tekken",
        "--diff",
    ]
    assert main([*words, "v3-tekken"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("- ") and lines[1].startswith("+ ") and lines[1].endswith("v3-tekken")
    assert "- [SYSTEM_PROMPT]" in lines
    assert "+ Be brief.\\n\\n" in lines
    assert "  [IMG 2×3]" in lines
    assert main([*words, "v11"]) == 0
    assert "the same ids" in capsys.readouterr().out


def test_a_terminal_has_colours_and_is_not_steered(tiny_llava: Path, tmp_path: Path) -> None:
    """Control tokens are coloured; an escape that somebody typed is not written."""
    file = write(tmp_path, [{"role": "user", "content": "a\x1b[2Jb"}])
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "vitrail", "prompt", file, "--tokenizer", str(tiny_llava)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    assert subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, env=environment).returncode == 0
    os.close(follower)
    shown = os.read(leader, 65536).decode()
    os.close(leader)
    assert "\x1b[1;36m[INST]" in shown
    assert "a[2Jb" in shown


MISTAKES = {
    "role": ([[{"role": "robot", "content": "a"}]], [], "messages[0].role"),
    "line": ([{"messages": CHAT}, {"messages": [{"role": "user"}]}], [], "line 2"),
    "refused": ([[{"role": "tool", "content": "a", "tool_call_id": "x"}, CHAT[1]]], [], "messages["),
    "no messages": ([{"tools": []}], [], "'messages'"),
    "no list": (["a"], [], "expected a list of messages"),
    "tools": ([{"messages": CHAT, "tools": {}}], [], "tools: expected a list"),
    "names": ([{"messages": CHAT, "tools": [{"function": {"name": "a b"}}]}], [], "tools[0].function.name"),
    "format": ([CHAT], ["--format", "v4"], "--format is one of"),
    "diff": ([CHAT], ["--diff", "v3", "--json"], "leave out"),
    "two tools": ([{"messages": CHAT, "tools": []}], ["--tools", "TOOLS"], "tools of its own"),
    "size": (
        [[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "size:0x4"}}]}]],
        [],
        "image 1 of the messages: a size is size:WxH",
    ),
    "no such file": (
        [[{"role": "user", "content": [{"type": "image", "path": "none.png"}, "a"]}]],
        [],
        "image 1 of the messages: There is no file",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told(
    case: str, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the place, and status 2."""
    values, options, message = MISTAKES[case]
    tools = write(tmp_path, [], name="tools.json")
    options = [tools if option == "TOOLS" else option for option in options]
    words = ["prompt", write(tmp_path, *values), "--tokenizer", str(tiny_llava), "--format", "v7-tekken"]
    assert main([*words, *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b'{"messages": []}\n{"messages": \n', "line 2: not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100000, "nested too deeply"),
    ],
)
def test_damaged_files_are_told(
    content: bytes, message: str, tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever they hold."""
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    assert main(["prompt", str(path), "--tokenizer", str(tiny_llava)]) == 2
    assert message in capsys.readouterr().err
    assert main(["prompt", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["prompt", write(tmp_path, CHAT), "--tokenizer", str(tmp_path / "tekken.json")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_unknown_keys_are_told(tiny_llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are not read, and not silently."""
    file = write(tmp_path, {"messages": CHAT, "tool": []})
    words = ["prompt", file, "--tokenizer", str(tiny_llava), "--format", "v7-tekken", "--json"]
    assert main(words) == 0
    assert "tool is not read" in capsys.readouterr().err
