"""files/json.py, files/formatting.py and files/hub.py: bounded reading, and messages that name what was wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import vitrail
from tests import tiny
from vitrail.errors import CheckpointError
from vitrail.files.formatting import listed
from vitrail.files.hub import resolve
from vitrail.files.hub_options import HubOptions
from vitrail.files.json import read_json
from vitrail.files.safetensors import SafetensorsFile
from vitrail.files.token_ids import read_token_ids
from vitrail.tokenizer.backend import read_backend


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert read_json(tmp_path / "c.json") == {"a": [1, "é"]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b"3", "a number"),
        (b'"x"', "a string"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * 300 + b'"}', "larger than"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_json(path, limit=256 if reason == "larger than" else 1 << 20)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.json cannot be read: No such file"):
        read_json(tmp_path / "none.json")


def test_names_are_drawn_together() -> None:
    names = [f"model.layers.{i}.w" for i in (0, 1, 2, 5, 7, 8)] + ["lm_head.weight", "a.3.b"]
    assert listed(names) == "model.layers.{0-2,5,7-8}.w, lm_head.weight, a.3.b"
    assert listed([f"n{i}" for i in range(300)]).endswith("n199 and 100 more")
    assert listed([]) == ""
    assert listed(["a\nb\x1b[31m"]) == "a?b?[31m"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "~/none", "a/b/c", "a b", "C:\\models\\x", "a--b/c"]
)
def test_what_cannot_be_a_hub_name_is_never_looked_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.files.hub.hub_client", None)  # whoever asked it would fail
    with pytest.raises(CheckpointError, match="there is no folder"):
        resolve(name)


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve(tmp_path / "x.bin")


def test_a_name_that_cannot_be_had_says_what_was_looked_for() -> None:
    with pytest.raises(CheckpointError, match=r"no folder 'nobody/nothing'.*revision v3"):
        resolve("nobody/nothing", HubOptions(revision="v3", local_files_only=True))


def test_nesting_more_than_any_file_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for begin, end, depth, taken in (
        (b"[", b"]", 99, True),
        (b"[", b"]", 100, False),
        (b'{"a":', b"}", 500, False),
    ):
        path.write_bytes(b'{"a":' + begin * depth + b"1" * (begin != b"[") + end * depth + b"}")
        if taken:
            assert read_json(path)["a"]
        else:  # json reads it, and copying it would end in a RecursionError
            with pytest.raises(CheckpointError, match="too deeply"):
                read_json(path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "processor_config.json"])
def test_settings_too_deep_or_too_large_are_one_sentence(name: str, tmp_path: Path) -> None:
    folder = tiny.write_checkpoint(tmp_path / "model")
    for odd, says in (
        (b"[" * 500 + b"]" * 500, "too deeply"),
        (b"[" + b"[]," * 1_400_000 + b"1]", "larger than"),
    ):
        (folder / name).write_bytes(b'{"odd":' + odd + b"}")
        load = vitrail.GenerationConfig if name.startswith("gen") else vitrail.AutoProcessor
        load = vitrail.AutoConfig if name == "config.json" else load
        with pytest.raises(CheckpointError, match=says):
            load.from_pretrained(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "adapter_config.json"
    os.mkfifo(pipe)
    for read in (
        read_json,
        SafetensorsFile,
        read_backend,
        lambda path: read_token_ids(path.rename(path.with_name("tokenizer.model"))),
    ):
        with pytest.raises(CheckpointError, match="it is no regular file"):
            read(pipe)
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match="it is no regular file"):
        vitrail.AutoModelForImageTextToText.from_config(tiny.config()).load_adapter(tmp_path)


def test_device_in_place_of_a_file_is_not_read() -> None:
    with pytest.raises(CheckpointError, match="it is no regular file"):
        read_json(os.devnull)
