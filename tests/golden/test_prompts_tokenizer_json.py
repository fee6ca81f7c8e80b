"""The recordings with a tokenizer.json: SentencePiece and Tekken files converted, and the same ids demanded."""

from __future__ import annotations

import warnings

import pytest

from tests.conversations import MARKERS, Writer
from tests.convert import json_tokenizer
from tests.prompts import (
    SENTENCEPIECE,
    TAKE_IMAGES,
    TEKKEN,
    VERSIONS,
    build,
    records,
    tokenizer,
    with_images,
)
from vitrail.errors import PromptError, UnsupportedError
from vitrail.processor.load import processor_parts
from vitrail.processor.processor import PixtralProcessor
from vitrail.prompts.builtin import build_prompt, encode_prompt, fim_prompt, find_format

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:tools are left out")]


@pytest.mark.parametrize("version", VERSIONS)
def test_recordings(version: str) -> None:
    encoder = json_tokenizer(version).encoder
    assert encoder.spaced == (version in SENTENCEPIECE)
    for number, record in enumerate(records(version)):
        prompt, _ = build(record, version, find_format(version))
        assert encode_prompt(prompt, encoder) == record["ids"], number
    for record in records("fim", version):
        assert (
            encode_prompt(fim_prompt(record["prompt"], record["suffix"], format=version), encoder)
            == record["ids"]
        )


@pytest.mark.parametrize("version", ["v1", "v3", "v7m1", "v3-tekken", "v15"])
def test_random_conversations(version: str) -> None:
    """Both kinds of tokenizer give the same ids for what random people say."""
    writer, mistral, json = Writer(version, 31), tokenizer(version).encoder, json_tokenizer(version).encoder
    accepted = 0
    for _ in range(300):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                prompt, _ = build(writer.conversation(), version)
            except PromptError:
                continue
        accepted += 1
        assert encode_prompt(prompt, json) == encode_prompt(prompt, mistral)
    assert accepted > 150


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7", "v3-tekken", "v15"])
def test_markers_are_text(version: str) -> None:
    json = json_tokenizer(version)
    controls = {index for index, token in json.added_tokens_decoder.items() if token.special}
    every = [token.content for token in json.added_tokens_decoder.values() if token.special]
    for text in (*MARKERS, *every[:60], *every[-3:]):
        for around in (text, f"a{text}b", f" {text} ", text * 2):
            for ids in (json.encoder.encode(around), json.encoder.encode_bare(around)):
                assert controls.isdisjoint(ids), around
            assert json.encoder.encode(around) == tokenizer(version).encoder.encode(around)


@pytest.mark.parametrize("version", VERSIONS)
def test_apply_chat_template(version: str) -> None:
    """The tokenizer's own calls, by name of the format; in two steps as in one."""
    json = json_tokenizer(version)
    found = [
        record for record in records(version) if not record["grids"] and not record.get("reasoning_effort")
    ]
    assert found
    for record in found[:8]:
        options = {"tools": record["tools"], "continue_final_message": record["continue_final_message"]}
        assert json.apply_chat_template(record["messages"], format=version, **options) == record["ids"]
        text = json.apply_chat_template(record["messages"], format=version, tokenize=False, **options)
        assert json(text)["input_ids"] == record["ids"]
        row = json(text, return_special_tokens_mask=True)
        assert sum(row["special_tokens_mask"]) >= 1 and len(row["attention_mask"]) == len(record["ids"])


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7m1", "v15"])
def test_format_is_told_by_control_tokens(version: str) -> None:
    assert json_tokenizer(version).prompt_format().name == version


def test_format_that_control_tokens_do_not_tell() -> None:
    with pytest.raises(PromptError, match="v3-tekken"):
        json_tokenizer(TEKKEN[0]).prompt_format()


@pytest.mark.parametrize("version", TAKE_IMAGES)
def test_processor(version: str) -> None:
    """A processor over a tokenizer.json, by name of the format: images and ids of the recordings, in both ways."""
    parts = processor_parts(tokenizer(version))
    processor = PixtralProcessor(**{**parts, "tokenizer": json_tokenizer(version)})
    for record in records(version)[1::15]:
        options = {name: record[name] for name in ("tools", "continue_final_message")}
        if record.get("reasoning_effort"):
            options["reasoning_effort"] = record["reasoning_effort"]
        messages = with_images(record["messages"])
        out = processor.apply_chat_template(
            messages, format=version, tokenize=True, return_dict=True, **options
        )
        assert out["input_ids"].tolist() == [record["ids"]]
        text = processor.apply_chat_template(messages, format=version, **options)
        assert processor(text=text)["input_ids"].tolist() == [record["ids"]]
        if accepted(messages, "card"):
            ids = processor.apply_chat_template(messages, format="card", tokenize=True).tolist()
            text = processor.apply_chat_template(messages, format="card")
            assert processor(text=text)["input_ids"].tolist() == ids


def accepted(messages: object, form: str) -> bool:
    """Whether a format takes the messages."""
    try:
        build_prompt(messages, form)
    except PromptError:
        return False
    return True


def test_one_turn_at_a_time() -> None:
    """Padding, truncation and masks of a batch in a built-in format."""
    json = json_tokenizer("v7")
    json.pad_token = "<unk>"
    chats = [[{"role": "user", "content": "one"}], [{"role": "user", "content": "one two three"}]]
    out = json.apply_chat_template(chats, format="v7", padding=True, return_dict=True, return_tensors="pt")
    assert out["input_ids"].shape == out["attention_mask"].shape
    assert out["attention_mask"].sum(1).tolist() == [
        len(json.apply_chat_template(c, format="v7")) for c in chats
    ]
    long = [*chats[1], {"role": "assistant", "content": "four"}, *chats[0]]
    with pytest.warns(UserWarning, match="messages 0, 1 are left out"):
        short = json.apply_chat_template(long, format="v7", truncation=True, max_length=4)
    assert short == json.apply_chat_template(chats[0], format="v7")
    with pytest.raises(UnsupportedError, match="offsets"):
        json(json.apply_chat_template(long, format="v7", tokenize=False), return_offsets_mapping=True)
