"""The reader's character tokenizer and folder: control ids, unknown characters, and the files that go with weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from vitrail.reader import charset
from vitrail.reader.tokenizer import tokenizer_json, write_assets
from vitrail.responses.parser import ResponseParser
from vitrail.tokenizer.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json()))


def test_control_tokens_have_tekkens_ids(tokenizer: Tokenizer) -> None:
    expected = {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "[IMG]": 10, "<pad>": 11}
    expected |= {"[IMG_BREAK]": 12, "[IMG_END]": 13, "[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18}
    assert {token: tokenizer.token_to_id(token) for token in expected} == expected


def test_every_character_is_one_token_and_comes_back(tokenizer: Tokenizer) -> None:
    everything = "".join(charset.alphabet())
    ids = tokenizer.encode(everything, add_special_tokens=False).ids
    assert ids == charset.encode(everything)
    assert len(ids) == len(everything) == len(set(ids))
    assert max(ids) < charset.VOCAB_SIZE
    assert tokenizer.decode(ids) == everything == charset.decode(ids)


def test_prompt_is_cut_at_control_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<s>[INST][IMG][IMG_END]Hi[/INST]", add_special_tokens=False).ids
    assert ids == [1, 3, 10, 13, *charset.encode("Hi"), 4]


@pytest.mark.parametrize("text", ["漢字", "🙂", "a\u200bb", "\x00", "\ud7ff"])
def test_unknown_characters_become_unk(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert charset.UNK in ids
    assert len(ids) == len(text)


def test_combining_accents_are_composed(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("e\u0301", add_special_tokens=False).ids == charset.encode("é")


def test_places_are_control_tokens_that_decoding_leaves_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("<y2><x3>A<x127>b<y63>", add_special_tokens=False).ids
    first = charset.first_place()
    a, b = charset.encode("Ab")
    assert ids == [first + charset.COLUMNS + 2, first + 3, a, first + 127, b, first + charset.COLUMNS + 63]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Ab" == charset.decode(ids)


def test_places_are_no_fault_of_an_answer(tmp_path: Path) -> None:
    write_assets(tmp_path)
    fast = load_tokenizer(tmp_path)
    parser = ResponseParser(fast)
    parser.feed(fast.convert_tokens_to_ids(["<y2>", "<x3>", "A", "<x9>", "b", "</s>"]))
    parser.finish()
    assert (parser.response.text, parser.response.faults) == ("Ab", ())


def test_the_folder_is_complete_and_agrees_with_the_training(tmp_path: Path) -> None:
    write_assets(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    images = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert images["size"] == {"longest_edge": 512}
    assert images["patch_size"] == {"height": 8, "width": 8}
    assert json.loads((tmp_path / "processor_config.json").read_text())["spatial_merge_size"] == 2
