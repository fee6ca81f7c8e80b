"""Built-in prompt formats against mistral-common's recordings: ids, images, refusals, truncation, infilling."""

from __future__ import annotations

import pytest

from tests.prompts import TAKE_IMAGES, TEKKEN, VERSIONS, Record, build, records, tokenizer, with_images
from vitrail.errors import PromptError
from vitrail.images.grid import image_grid
from vitrail.processor.load import processor_parts
from vitrail.processor.processor import PixtralProcessor
from vitrail.prompts.builtin import build_prompt, encode_prompt, fim_prompt, fit_prompt
from vitrail.prompts.builtin.pieces import Image
from vitrail.prompts.builtin.sizes import lay_out

pytestmark = pytest.mark.filterwarnings("ignore:tools are left out")

# The format of the Pixtral Large card as docs/prompts.md defines it; ids of the v7m1 tokenizer.
CARD_IDS = [
    *(
        1,
        16,
        1036,
        17,
        3,
        29473,
        10,
        10,
        14,
        10,
        10,
        15,
        29486,
        6,
        1501,
        7567,
        1891,
        2032,
        1113,
        3396,
        1316,
        1113,
    ),
    *(
        3396,
        2032,
        10598,
        1629,
        2032,
        1113,
        29490,
        1316,
        1113,
        7286,
        2032,
        8657,
        1113,
        12206,
        2032,
        1139,
        1743,
    ),
    *(
        10925,
        7,
        4,
        10,
        10,
        14,
        10,
        10,
        15,
        29476,
        5,
        1501,
        7567,
        1629,
        2032,
        1113,
        29490,
        1316,
        1113,
        17452,
        2032,
    ),
    *(
        13450,
        1113,
        1081,
        2032,
        1113,
        17380,
        2038,
        1359,
        29508,
        18163,
        4096,
        29516,
        4725,
        3832,
        29498,
        14509,
        29503,
    ),
    *(29561, 8, 1176, 10, 10, 14, 10, 10, 15, 9, 2, 3, 1131, 4),
]


@pytest.mark.parametrize("version", VERSIONS)
def test_accepted(version: str) -> None:
    encoder = tokenizer(version).encoder
    found = records(version)
    assert len(found) == 60
    for number, record in enumerate(found):
        prompt, grids = build(record, version)
        assert encode_prompt(prompt, encoder) == record["ids"], number
        assert [[grid.rows, grid.cols] for grid in grids] == record["grids"], number
        assert prompt.order == record["pictures"], number
        if version in TEKKEN:
            assert prompt == record["text"], number


@pytest.mark.parametrize("version", VERSIONS)
def test_named_format_is_that_of_the_file(version: str) -> None:
    """The recordings come out the same when the format is named instead of read from the file."""
    form = tokenizer(version).prompt_format()
    assert form.name == version
    for record in records(version)[::7]:
        assert build(record, version)[0] == build_prompt_by_name(record, version)


def build_prompt_by_name(record: dict, version: str) -> str:
    from vitrail.prompts.builtin import find_format

    return build(record, version, find_format(version))[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_refused(version: str) -> None:
    encoder = tokenizer(version).encoder
    found = records("refused", version)
    assert len(found) > 30
    for record in found:
        with pytest.raises(PromptError) as caught:
            encode_prompt(build(record, version)[0], encoder)
        assert any(
            word in str(caught.value) for word in ("messages", "tools[", "reasoning_effort", "picture")
        ), record


@pytest.mark.parametrize("version", ["v7", "v7m1", "v7-tekken", "v11", "v13", "v15"])
def test_truncated(version: str) -> None:
    encoder = tokenizer(version).encoder
    found = records("truncated", version)
    assert len(found) >= 5
    for record in found:
        prompt, _ = build(record, version)
        if "exception" in record:
            with pytest.raises(PromptError, match="too short"):
                fit_prompt(prompt, encoder, record["max_length"])
            continue
        short = fit_prompt(prompt, encoder, record["max_length"])
        assert encode_prompt(short, encoder) == record["ids"]
        assert [[p.grid.rows, p.grid.cols] for p in short.pieces if isinstance(p, Image)] == record["grids"]
        assert len(short.images) == len(record["grids"])
        kept = {place for section in short.sections for place in section.messages}
        assert sorted({*kept, *short.dropped}) == list(range(len(record["messages"])))


def test_truncation_is_refused_where_the_format_has_no_rule() -> None:
    prompt = build_prompt([{"role": "user", "content": "one two three"}], "v3", spaced=True)
    encoder = tokenizer("v3").encoder
    assert fit_prompt(prompt, encoder, 100) is prompt
    with pytest.raises(PromptError, match="no rule"):
        fit_prompt(prompt, encoder, 2)


@pytest.mark.parametrize("version", ["v3", "v7", "v3-tekken", "v7-tekken"])
def test_fim(version: str) -> None:
    found = records("fim", version)
    assert len(found) == 7
    for record in found:
        prompt = fim_prompt(record["prompt"], record["suffix"], format=version)
        assert encode_prompt(prompt, tokenizer(version).encoder) == record["ids"]


def test_card() -> None:
    image = {"type": "image_url", "image_url": {"url": "size:20x20"}}
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [image, {"type": "text", "text": "u"}]},
        {"role": "assistant", "content": [image, {"type": "text", "text": "a"}], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": [{"type": "text", "text": "r"}, image]},
        {"role": "user", "content": "v"},
    ]
    tools = [{"type": "function", "function": {"name": "f"}}]
    prompt = build_prompt(conversation, "card", tools=tools)
    prompt, _ = lay_out(
        prompt, lambda height, width: image_grid(height, width, dialect="mistral"), placeholders=True
    )
    assert prompt == (
        "<s>[SYSTEM_PROMPT] s[/SYSTEM_PROMPT][INST] [IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]u[AVAILABLE_TOOLS] "
        '[{"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}][/AVAILABLE_TOOLS]'
        '[/INST][IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END]a[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": '
        '"abcdefgh1"}][/TOOL_CALLS][TOOL_RESULTS] r[IMG][IMG][IMG_BREAK][IMG][IMG][IMG_END][/TOOL_RESULTS]</s>'
        "[INST] v[/INST]"
    )
    assert encode_prompt(prompt, tokenizer("v7m1").encoder) == CARD_IDS


@pytest.mark.parametrize("version", TAKE_IMAGES)
def test_processor_calls(version: str) -> None:
    """What a processor makes of messages is the recording, in one step and in two."""
    processor = PixtralProcessor(**processor_parts(tokenizer(version)))
    for record in records(version)[1::12]:
        options, messages = options_of(record), with_images(record["messages"])
        out = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
        assert out["input_ids"].tolist() == [record["ids"]]
        assert len(out.get("image_sizes", ())) == len(record["grids"])
        text = processor.apply_chat_template(messages, tokenize=False, **options)
        again = processor(text=text)
        assert again["input_ids"].tolist() == [record["ids"]]
        if record["grids"]:
            assert (again["pixel_values"] == out["pixel_values"]).all()


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in TAKE_IMAGES])
def test_tokenizer_calls(version: str) -> None:
    """The same of the tokenizers for text alone."""
    model = tokenizer(version)
    for record in records(version)[1::12]:
        options = options_of(record)
        for form in ("auto", version):
            ids = model.apply_chat_template(record["messages"], format=form, **options)
            assert ids == record["ids"]
            text = model.apply_chat_template(record["messages"], format=form, tokenize=False, **options)
            assert model(text)["input_ids"] == record["ids"]


@pytest.mark.parametrize("version", TAKE_IMAGES)
def test_the_cards_format_in_two_steps(version: str) -> None:
    """With every tokenizer that has names for images; the ids are what its rules say (unit/test_card_format.py)."""
    processor = PixtralProcessor(**processor_parts(tokenizer(version)))
    image = with_images({"type": "image_url", "image_url": {"url": "size:40x33"}})
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "[IMG] u"}, image]},
        {"role": "assistant", "content": [image, {"type": "text", "text": "a"}], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefgh1", "content": [{"type": "text", "text": "r"}, image]},
        {"role": "system", "content": "[INST] s"},
        {"role": "user", "content": "v"},
    ]
    options = {"tools": [{"type": "function", "function": {"name": "f"}}], "format": "card"}
    ids = processor.apply_chat_template(messages, tokenize=True, **options).tolist()
    text = processor.apply_chat_template(messages, tokenize=False, **options)
    assert processor(text=text)["input_ids"].tolist() == ids
    assert ids[0].count(processor.image_end_token_id) == 3
    assert ids[0].count(processor.tokenizer.encoder.find("[INST]")) == 2


def options_of(record: Record) -> dict[str, object]:
    """The recorded request's options, as `apply_chat_template` takes them."""
    options = {name: record[name] for name in ("tools", "continue_final_message")}
    return options | (
        {"reasoning_effort": record["reasoning_effort"]} if record.get("reasoning_effort") else {}
    )
