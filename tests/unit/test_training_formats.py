"""Data in the spellings and file formats that people have: each becomes the conversation that `messages` would give."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tiny
from vitrail.cli.main import main
from vitrail.errors import InputError, MissingPackageError, PromptError
from vitrail.reader import embedded_path
from vitrail.train.conversations import read_talk
from vitrail.train.data_files import open_records
from vitrail.train.dataset import open_dataset
from vitrail.train.setup import Inputs, open_inputs

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
SHARED = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}


@pytest.fixture(scope="module")
def inputs(tiny_llava: Path) -> Inputs:
    return open_inputs(tiny_llava)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.image(24, 40).save(tmp_path / "a.png")
    tiny.image(16, 16, seed=1).save(tmp_path / "b.png")
    return tmp_path


def images(*names: str) -> list[dict[str, Any]]:
    return [{"type": "image", "path": name} for name in names]


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


SPELLINGS: dict[str, tuple[Any, Any]] = {
    "ShareGPT": (SHARED, [USER, ANSWER]),
    "ShareGPT with a system turn": (
        {"id": "7", "conversations": [{"from": "system", "value": "Be brief."}, *SHARED["conversations"]]},
        [{"role": "system", "content": "Be brief."}, USER, ANSWER],
    ),
    "LLaMA-Factory's system": (
        {**SHARED, "system": "Be brief.", "tools": ""},
        [{"role": "system", "content": "Be brief."}, USER, ANSWER],
    ),
    "LLaVA": (
        {"id": 1, "image": "a.png", "conversations": [
            {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A hill."}]},
        [{"role": "user", "content": [*images("a.png"), text("What?")]}, {"role": "assistant", "content": "A hill."}],
    ),
    "LLaVA, several images in two turns": (
        {"image": ["a.png", "b.png", "a.png"], "conversations": [
            {"from": "human", "value": "<image>\n<image>\nWhat differs?"}, {"from": "gpt", "value": "All."},
            {"from": "human", "value": "And <image> here?"}, {"from": "gpt", "value": "None."}]},
        [{"role": "user", "content": [*images("a.png", "b.png"), text("What differs?")]},
         {"role": "assistant", "content": "All."},
         {"role": "user", "content": [text("And "), *images("a.png"), text(" here?")]},
         {"role": "assistant", "content": "None."}],
    ),
    "a mark in a text without images is text": (
        {"conversations": [{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "A tag."}]},
        [{"role": "user", "content": "What is <image>?"}, {"role": "assistant", "content": "A tag."}],
    ),
    "messages with marks, as ms-swift": (
        {"messages": [{"role": "user", "content": "<image>What?"}, ANSWER], "images": ["b.png"]},
        [{"role": "user", "content": [*images("b.png"), text("What?")]}, ANSWER],
    ),
    "prompt and completion": ({"prompt": "Hi", "completion": "Hello."}, [USER, ANSWER]),
    "prompt and completion as messages": (
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
        [USER, {**ANSWER, "weight": 0}, USER, ANSWER],
    ),
    "prompt and completion with an image": (
        {"prompt": [USER], "completion": [ANSWER], "images": ["a.png"]},
        [{"role": "user", "content": [*images("a.png"), text("Hi")]}, ANSWER],
    ),
    "a turn's weight": (
        {"conversations": [*SHARED["conversations"], {"from": "user", "value": "Hi"},
                           {"from": "model", "value": "No.", "weight": 0}]},
        [USER, ANSWER, USER, {"role": "assistant", "content": "No.", "weight": 0}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_gives_the_example_of_plain_messages(name: str, inputs: Inputs, folder: Path) -> None:
    given, plain = SPELLINGS[name]
    maker = inputs.examples(4096)
    example, expected = maker.make(read_talk(given, folder)), maker.make(read_talk(plain, folder))
    assert example.ids == expected.ids and example.labels == expected.labels
    assert [one.tobytes() for one in example.images] == [one.tobytes() for one in expected.images]


def test_sharegpt_calls_and_observations_are_joined_by_their_ids(tmp_path: Path) -> None:
    call = json.dumps({"name": "find", "arguments": {"what": "x"}})
    turns = [("human", "Find x"), ("function_call", call), ("observation", "3"), ("gpt", "It is 3.")]
    record = {
        "conversations": [{"from": who, "value": what} for who, what in turns],
        "tools": json.dumps([{"type": "function", "function": {"name": "find", "parameters": {}}}]),
    }
    talk = read_talk(record, tmp_path)
    asked, seen = talk.messages[1], talk.messages[2]
    assert asked.tool_calls[0]["id"] == seen.tool_call_id
    assert len(str(seen.tool_call_id)) == 9  # as Mistral's formats want it
    assert asked.tool_calls[0]["function"]["arguments"] == {"what": "x"}
    assert talk.learned == (False, True, False, True)
    assert talk.tools is not None and talk.tools[0]["function"]["name"] == "find"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"conversations": [{"from": "alien", "value": "Hi"}]},
            r"conversations\[0\].from: expected one of human",
        ),
        ({"conversations": [{"from": "human", "value": 3}]}, r"value: expected a text, got int"),
        ({"conversations": [{"from": "human", "value": "Hi", "markdown": "x"}]}, "markdown is not read"),
        ({"conversations": [{"from": "function_call", "value": "{"}]}, "not valid JSON"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "expected a call with 'name'"),
        ({"conversations": "Hi"}, "conversations: expected a list, got str"),
        ({**SHARED, "messages": [USER, ANSWER]}, "'conversations' or 'messages', not both"),
        ({**SHARED, "image": "a.png", "images": ["a.png"]}, "'image' or 'images', not both"),
        ({**SHARED, "image": "a.png"}, "1 of 1 have no place"),
        ({**SHARED, "video": "a.mp4"}, "video: not read; known are messages"),
        ({**SHARED, "tools": "{"}, "tools: not valid JSON"),
        ({"prompt": "Hi"}, "'prompt' and 'completion' belong together"),
        ({"prompt": 3, "completion": "Hello."}, "expected a text or a list of messages"),
    ],
)
def test_spelling_that_cannot_be_read_says_why(record: Any, said: str, folder: Path) -> None:
    with pytest.raises(PromptError, match=said):
        read_talk(record, folder)


@pytest.mark.parametrize("layout", ["pretty", "compact", "one line", "marked"])
def test_json_list_is_read_by_item(layout: str, inputs: Inputs, folder: Path) -> None:
    records = [
        SHARED,
        {"messages": [USER, {"role": "assistant", "content": '日本 \u00e9 [ ] , "'}]},
        [USER, ANSWER],
    ]
    data = {
        "pretty": json.dumps(records, indent=2, ensure_ascii=False),
        "compact": "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n",
        "one line": json.dumps(records),
        "marked": "\ufeff" + json.dumps(records, ensure_ascii=False),  # a byte order mark
    }[layout]
    (folder / "data.json").write_text(data, "utf-8")
    found = open_records(folder / "data.json")
    assert (found.unit, [found[place] for place in range(len(found))]) == ("item", records)
    assert not open_dataset(folder / "data.json", inputs.examples(4096)).faults


def test_json_lines_whose_lines_are_lists_stay_lines(folder: Path) -> None:
    (folder / "data.jsonl").write_text(json.dumps([USER, ANSWER]) + "\n" + json.dumps([USER, ANSWER]) + "\n")
    found = open_records(folder / "data.jsonl")
    assert (found.unit, len(found)) == ("line", 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"messages": []},\n', "not closed after item 1"),
        ('[\n{"messages": []} {}\n]', "item 2 of the list is not valid JSON: expected a comma"),
        ("[\n{,}\n]", "item 1 of the list is not valid JSON"),
        ("[\n" + "[" * 100_000, "item 1 of the list is not valid JSON"),
    ],
)
def test_json_list_that_is_damaged_is_one_sentence(text: str, said: str, folder: Path) -> None:
    (folder / "data.json").write_text(text)
    with pytest.raises(InputError, match=said):
        open_records(folder / "data.json")


def test_json_list_fault_names_the_item(inputs: Inputs, folder: Path) -> None:
    (folder / "data.json").write_text(json.dumps([SHARED, {"conversations": 3}], indent=1))
    data = open_dataset(folder / "data.json", inputs.examples(4096))
    assert [str(fault) for fault in data.faults] == ["item 2: conversations: expected a list, got int"]


def encoded(seed: int) -> bytes:
    stream = io.BytesIO()
    tiny.image(24, 40, seed=seed).save(stream, "PNG")
    return stream.getvalue()


def test_parquet_rows_with_images_equal_json_lines(inputs: Inputs, folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"conversations": [{"from": "human", "value": f"<image>\nWhat {n}?"}, {"from": "gpt", "value": "A hill."}],
         "images": [{"bytes": encoded(n), "path": None}]}
        for n in range(5)
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet", row_group_size=2)
    data = open_dataset(folder / "data.parquet", inputs.examples(4096))
    assert (len(data), data.faults, data.records.unit) == (5, [], "row")
    for number in (4, 0, 3):  # across row groups, back and forth
        expected = inputs.examples(4096).make(read_talk(rows[number], folder))
        assert data[number].ids == expected.ids
        assert data[number].images[0].tobytes() == tiny.image(24, 40, seed=number).convert("RGB").tobytes()
    (folder / "cut.parquet").write_bytes((folder / "data.parquet").read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        open_records(folder / "cut.parquet")


def test_datasets_object_and_saved_folder_equal_plain_messages(inputs: Inputs, folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                      {"role": "assistant", "content": [{"type": "text", "text": f"A hill {n}."}]}],
         "images": [tiny.image(24, 40, seed=n)]}
        for n in range(3)
    ]  # fmt: skip
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(folder / "saved"))
    plain = open_dataset(rows, inputs.examples(4096))
    for source in (made, folder / "saved"):
        data = open_dataset(source, inputs.examples(4096))
        assert data.faults == []
        assert [data[n].ids for n in range(3)] == [plain[n].ids for n in range(3)]
        assert data[1].images[0].tobytes() == plain[1].images[0].tobytes()
    assert (
        open_dataset(made.select([1, 0, 2]), inputs.examples(4096)).digest
        != open_dataset(made, inputs.examples(4096)).digest
    )


@pytest.mark.parametrize("name", ["data.parquet", "saved"])
def test_data_without_the_extra_is_one_sentence(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "data.parquet").write_bytes(b"PAR1")
    (folder / "saved").mkdir()
    for note in ("state.json", "dataset_info.json"):
        (folder / "saved" / note).write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingPackageError, match=r"needs the extra 'data': pip install 'vitrail\[data\]'"):
        open_records(folder / name)


def test_rows_digest_changes_with_an_image() -> None:
    first, second = ([{"messages": [USER, ANSWER], "images": [tiny.image(8, 8, seed=n)]}] for n in (0, 1))
    assert open_records(first).digest() == open_records(first).digest()
    assert open_records(first).digest() != open_records(second).digest()


@pytest.mark.parametrize("source", [3, None, {1, 2}])
def test_data_of_another_kind_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match=r"expected a path, a datasets.Dataset or a list"):
        open_records(source)


def test_check_tells_characters_that_the_tokenizer_lacks(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    (folder / "data.jsonl").write_text(
        json.dumps([{"role": "user", "content": "жук ж"}, {"role": "assistant", "content": "A beetle."}])
        + "\n"
    )
    words = ["train", str(folder / "data.jsonl"), "--model", str(embedded_path()), "--check"]
    assert main(words) == 0
    assert "3 characters have no token and become the unknown one: 'ж' (2)" in capsys.readouterr().err
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == {"ж": 2, "у": 1, "к": 1}


def test_check_with_a_complete_tokenizer_tells_nothing(
    folder: Path, tiny_llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data.json").write_text(json.dumps([SHARED, SHARED]))
    assert main(["train", str(folder / "data.json"), "--model", str(tiny_llava), "--check"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("2 conversations, ") and out.endswith("0 items cannot be used\n")
    assert err == ""


@pytest.mark.parametrize("name", [["human"], {"a": 1}, 3, None, "x" * 100_000])
def test_a_turn_from_nobody_is_one_short_sentence(name: Any) -> None:
    with pytest.raises(PromptError, match=r"conversations\[0\]\.from: expected one of") as caught:
        read_talk({"conversations": [{"from": name, "value": "Hi"}]}, Path())
    assert len(str(caught.value)) < 400
