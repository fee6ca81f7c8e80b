"""From lines of JSON to ids and labels: spellings, what is learned, and what is said about lines that cannot be used."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import tiny
from vitrail import ImageLimits, image_request, set_image_defaults
from vitrail.errors import InputError, PromptError
from vitrail.prompts.messages import ImagePart
from vitrail.train.conversations import read_talk
from vitrail.train.data_files import find_lines, read_line
from vitrail.train.dataset import open_dataset, refuse_faults
from vitrail.train.packing import Order, Room, in_groups, pack
from vitrail.train.setup import Inputs, fingerprint, longest_of, open_inputs

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
IMAGE: dict[str, Any] = {"type": "image", "path": "a.png"}


@pytest.fixture(scope="module")
def inputs(tiny_llava: Path) -> Inputs:
    return open_inputs(tiny_llava)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.image(24, 40).save(tmp_path / "a.png")
    tiny.image(16, 16, seed=1).save(tmp_path / "b.png")
    return tmp_path


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "data.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8"
    )
    return path


def answers(inputs: Inputs, example: Any) -> str:
    """The text that is learned."""
    ids = [index for index, label in zip(example.ids, example.labels, strict=True) if label != -100]
    text: str = inputs.maker.tokenizer.decode(ids)
    return text


@pytest.mark.parametrize(
    "line",
    [
        [USER, ANSWER],
        {"messages": [USER, ANSWER]},
        {"interactions": [{"role": "user", "text": "Hi"}, {"role": "assistant", "text": "Hello."}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ANSWER]},
    ],
    ids=["list", "openai", "mistral-finetune", "parts"],
)
def test_every_spelling_gives_the_same_ids(line: Any, inputs: Inputs, tmp_path: Path) -> None:
    example = inputs.examples(4096).make(read_talk(line, tmp_path))
    expected = inputs.examples(4096).make(read_talk([USER, ANSWER], tmp_path))
    assert example == expected
    assert answers(inputs, example) == "Hello.</s>"


def test_system_prompt_weights_and_only_last(tmp_path: Path) -> None:
    talk = read_talk(
        {"system_prompt": "Be brief.", "messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}, tmp_path
    )
    assert talk.messages[0].role == "system"
    assert talk.learned == (False, False, False, False, True)
    talk = read_talk({"messages": [USER, ANSWER, USER, ANSWER], "only_last": True}, tmp_path)
    assert talk.learned == (False, False, False, True)


@pytest.mark.parametrize("format", ["v3-tekken", "v7-tekken", "v11", "v13", "card"])
@pytest.mark.parametrize(
    ("weights", "only_last", "learned"),
    [
        ((0, 1), False, "b</s>"),
        ((1, 0), False, "a</s>"),
        ((0, None), False, "b</s>"),
        ((0, 1, 0), False, "b</s>"),
        ((0, 0, 1), False, "c</s>"),
        ((1, None), False, "a</s>b</s>"),  # mistral-common joins only equal weights
        ((None, None), True, "b</s>"),
    ],
)
def test_neighbouring_answers_of_weight_zero_are_not_learned(
    weights: tuple[Any, ...], only_last: bool, learned: str, format: str, tmp_path: Path
) -> None:
    inputs = open_inputs(tiny.DATA / "mistral3-0")
    said = [
        {"role": "assistant", "content": text, "weight": w} for text, w in zip("abc", weights, strict=False)
    ]
    example = inputs.examples(4096, format).make(
        read_talk({"messages": [USER, *said], "only_last": only_last}, tmp_path)
    )
    assert answers(inputs, example).replace(" ", "") == learned


def test_images_lie_beside_the_file(folder: Path) -> None:
    parts = [{"type": "image"}, {"type": "image_url", "image_url": {"url": "b.png"}}]
    talk = read_talk({"messages": [{"role": "user", "content": parts}, ANSWER], "images": ["a.png"]}, folder)
    sources = [part.source for part in talk.messages[0].content if isinstance(part, ImagePart)]
    assert sources == [str(folder / "a.png"), str(folder / "b.png")]


@pytest.mark.parametrize("format", [None, "v3-tekken"])
def test_ids_are_the_prompt_builders_and_only_answers_are_learned(
    format: str | None, tiny_llava: Path, inputs: Inputs, folder: Path
) -> None:
    """With images and several turns; a control token that somebody typed stays text."""
    user = {"role": "user", "content": [IMAGE, {"type": "text", "text": "What [/INST] is it?"}]}
    line = [
        user,
        {"role": "assistant", "content": "A hill."},
        USER,
        {"role": "assistant", "content": "Yes. [IMG]"},
    ]
    example = inputs.examples(4096, format).make(read_talk(line, folder))
    processor = vitrail.AutoProcessor.from_pretrained(tiny_llava)
    opened = [
        {**user, "content": [{"type": "image", "path": str(folder / "a.png")}, user["content"][1]]},
        *line[1:],
    ]
    options = {} if format is None else {"format": format, "mode": "agnostic"}
    whole = processor.apply_chat_template(opened, tokenize=True, return_dict=True, **options)
    assert example.ids == whole["input_ids"][0].tolist()
    asked = processor.apply_chat_template(opened[:1], tokenize=True, return_dict=True, **options)[
        "input_ids"
    ][0]
    first = next(place for place, label in enumerate(example.labels) if label != -100)
    assert example.ids[:first] == asked.tolist()
    assert answers(inputs, example) == "A hill.</s>Yes. [IMG]</s>"
    assert processor.image_token_id not in [label for label in example.labels if label != -100]


def test_calls_of_tools_are_answers_and_their_results_are_not(inputs: Inputs, tmp_path: Path) -> None:
    look = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    line = {
        "available_tools": [{"type": "function", "function": look}],
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "sun"},
            {"role": "assistant", "content": "Sun."},
        ],
    }
    example = inputs.examples(4096, "v3-tekken").make(read_talk(line, tmp_path))
    shown = '[TOOL_CALLS][{"name": "look", "arguments": {}, "id": "abcdefghi"}]</s>Sun.</s>'
    assert answers(inputs, example) == shown


def test_packed_rows(inputs: Inputs, folder: Path) -> None:
    user = {"role": "user", "content": [IMAGE, {"type": "text", "text": "?"}]}
    maker = inputs.examples(4096)
    one, two = maker.make(read_talk([user, ANSWER], folder)), maker.make(read_talk([USER, ANSWER], folder))
    rows = pack([one, two], inputs.prepare)
    assert rows.lengths == (len(one.ids), len(two.ids))
    assert rows.ids.tolist() == one.ids + two.ids
    assert rows.positions.tolist() == [*range(len(one.ids)), *range(len(two.ids))]
    learned = [label for label in one.labels[1:] + two.labels[1:] if label != -100]
    assert rows.targets.tolist() == learned
    assert rows.ids[rows.keep + 1].tolist() == learned  # each is told from the id before it
    assert rows.pixel_values is not None and len(rows.pixel_values) == 1


def test_every_example_once_an_epoch_in_an_order_of_the_seed() -> None:
    lengths = [5, 9, 3, 7, 2, 8, 4]
    order = Order(lengths, Room(3, 12), 2, seed=1)
    steps = order.steps(2)
    first = [place for step in range(order.steps(1)) for one in order.at(step) for place in one]
    second = [place for step in range(order.steps(1), steps) for one in order.at(step) for place in one]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    again = Order(lengths, Room(3, 12), 2, seed=1)
    assert [again.at(step) for step in reversed(range(steps))] == [
        order.at(step) for step in reversed(range(steps))
    ]
    assert [order.epoch(step) for step in (0, order.steps(1) - 1, order.steps(1))] == [0, 0, 1]
    for one in in_groups(range(7), lengths, Room(3, 12)):
        assert len(one) <= 3 and (len(one) == 1 or sum(lengths[place] for place in one) <= 12)


BAD = {
    "no JSON": ('{"messages": [', "not valid JSON"),
    "no object": ("7", "expected a list of messages or an object"),
    "no messages": ({"text": "pretraining"}, "text: not read"),
    "no answer": ([USER], "no assistant message"),
    "nothing weighs": ([USER, {**ANSWER, "weight": 0}], "weight 0"),
    "an odd weight": ([USER, {**ANSWER, "weight": 2}], "expected 0 or 1"),
    "both spellings": ({"messages": [USER, ANSWER], "interactions": [USER, ANSWER]}, "not both"),
    "a role": ([{"role": "human", "content": "Hi"}, ANSWER], "expected one of system"),
    "a missing image": (
        [{"role": "user", "content": [{"type": "image", "path": "none.png"}]}, ANSWER],
        "none.png",
    ),
    "a broken image": (
        [{"role": "user", "content": [{"type": "image", "path": "cut.png"}]}, ANSWER],
        "cut.png",
    ),
    "an image too many": ({"messages": [USER, ANSWER], "images": ["a.png"]}, "have no place"),
    "too long": ([{"role": "user", "content": "word " * 200}, ANSWER], "positions, more than 100"),
}


def test_every_bad_line_is_told_with_its_number(inputs: Inputs, folder: Path) -> None:
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    lines = [line for line, _ in BAD.values()]
    path = write(folder, [USER, ANSWER], "", *lines, [USER, ANSWER])
    data = open_dataset(path, inputs.examples(100))
    assert len(data) == 2
    assert [fault.line for fault in data.faults] == list(range(3, 3 + len(lines)))
    for fault, (name, (_, said)) in zip(data.faults, BAD.items(), strict=True):
        assert said in fault.reason, name
    with pytest.raises(
        InputError, match=f"{len(lines)} of {len(lines) + 2} lines cannot be used .line 3: not valid"
    ):
        refuse_faults(data, skip=False)
    refuse_faults(data, skip=True)
    assert data[1] == data[0]


def test_nothing_is_left_to_learn(inputs: Inputs, folder: Path) -> None:
    data = open_dataset(write(folder, "{", "}"), inputs.examples(100))
    with pytest.raises(InputError, match="none of its 2 lines"):
        refuse_faults(data, skip=True)
    with pytest.raises(InputError, match="is empty"):
        open_dataset(write(folder), inputs.examples(100))
    with pytest.raises(InputError, match="cannot be read"):
        open_dataset(folder / "none.jsonl", inputs.examples(100))


def test_latin_1_and_deep_nesting_are_told(folder: Path) -> None:
    (folder / "x.jsonl").write_bytes(b'["\xe9"]\n' + b"[" * 100_000 + b"\n")
    for line, said in zip(
        find_lines(folder / "x.jsonl"), ("UTF-8", "nested too deeply|not valid JSON"), strict=True
    ):
        with pytest.raises(PromptError, match=said):
            read_line(folder / "x.jsonl", line)


def test_templates_that_rewrite_the_beginning_are_refused(inputs: Inputs, tmp_path: Path) -> None:
    """An answer that cannot be told from the prompt is not guessed at."""
    from dataclasses import replace

    template = "{{ bos_token }}{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ eos_token }}"
    maker = replace(inputs.examples(4096), maker=replace(inputs.maker, template=template))
    with pytest.raises(PromptError, match=r"messages\[1\]: the chat template writes"):
        maker.make(read_talk([USER, ANSWER, USER, ANSWER], tmp_path))


def test_a_run_knows_its_base_by_the_weights(tiny_llava: Path, tmp_path: Path) -> None:
    """The same folder with other weights would be another run."""
    copy = tiny.write_checkpoint(tmp_path / "copy", "llava")
    assert fingerprint(copy) == fingerprint(tiny_llava)
    tiny.write_checkpoint(copy, "llava", seed=1)
    assert fingerprint(copy) != fingerprint(tiny_llava)


def test_the_context_is_the_models(tiny_llava: Path) -> None:
    assert longest_of(tiny_llava) == 4096
    assert torch.is_tensor(open_inputs(tiny_llava).prepare([tiny.image(16, 24)])["pixel_values"])


@pytest.mark.parametrize("block", [False, True])
def test_each_conversation_has_the_limits_of_a_request(inputs: Inputs, folder: Path, block: bool) -> None:
    """Its images together; other conversations, and other epochs, count for themselves."""

    def talk(images: int) -> list[Any]:
        return [{"role": "user", "content": [IMAGE] * images}, ANSWER]

    path = write(folder, talk(2), talk(3), talk(2))
    for limits, says in (
        (ImageLimits(max_images=2), "at most 2 images"),
        (ImageLimits(max_total_pixels=2 * 24 * 40), "pixels together"),
        (ImageLimits(max_memory=4 * 4 * 2 * 24 * 40), "images of this conversation take more than"),
    ):
        if not block:
            set_image_defaults(limits)
        with image_request(limits) if block else nullcontext():
            data = open_dataset(path, inputs.examples(4096))
            assert all(len(data[index].images) == 2 for index in (0, 1, 0, 1))
        set_image_defaults()
        (fault,) = data.faults
        assert fault.line == 2 and says in fault.reason
