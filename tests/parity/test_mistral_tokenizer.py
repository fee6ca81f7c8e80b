"""MistralCommonTokenizer beside transformers 4.57's and beside mistral-common itself, on the files of its wheel."""

from __future__ import annotations

import importlib.util
import inspect
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import DATA, image as picture
from vitrail.errors import CheckpointError, InputError, MissingPackageError, VitrailError
from vitrail.tokenizer.base import BaseTokenizer
from vitrail.tokenizer.load import load_tokenizer
from vitrail.tokenizer.mistral import MistralCommonTokenizer

pytest.importorskip("mistral_common")
transformers = pytest.importorskip("transformers")

TEXTS = ["hello", "  two  spaces", "Décrivez l'image. 漢字 🦜\n", "[INST] typed <s>", "5 + 5 = 10", "'s"]
SPM = (
    "tokenizer.model.v1",
    "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_instruct_tokenizer_241114.model.v7m1",
)


def data_file(name: str) -> Path:
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Pixtral 12B's tekken.json."""
    folder = tmp_path_factory.mktemp("tekken")
    shutil.copy(data_file("tekken_240911.json"), folder / "tekken.json")
    return folder


@pytest.fixture(scope="module")
def tekken(folder: Path) -> MistralCommonTokenizer:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, MistralCommonTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return transformers.MistralCommonTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def large() -> MistralCommonTokenizer:
    """Pixtral Large's tokenizer, in which transformers' class does not work beside mistral-common 1.13."""
    pytest.importorskip("sentencepiece")
    return MistralCommonTokenizer(data_file(SPM[2]))


METHODS = (
    *(
        "__init__",
        "__call__",
        "__len__",
        "encode",
        "decode",
        "batch_decode",
        "tokenize",
        "pad",
        "apply_chat_template",
        "prepare_for_model",
        "truncate_sequences",
    ),
    *("convert_ids_to_tokens", "convert_tokens_to_ids", "get_special_tokens_mask", "get_vocab"),
    *("from_pretrained", "save_pretrained"),
)


@pytest.mark.parametrize("name", METHODS)
def test_signatures(name: str) -> None:
    def shape(owner: Any) -> list[tuple[str, Any, Any]]:
        parameters = inspect.signature(getattr(owner, name)).parameters.values()
        return [(parameter.name, parameter.default, parameter.kind) for parameter in parameters]

    assert shape(MistralCommonTokenizer) == shape(transformers.MistralCommonTokenizer)


def test_texts(tekken: MistralCommonTokenizer, reference: Any) -> None:
    assert isinstance(tekken, BaseTokenizer)
    for text in TEXTS:
        for special in (False, True):
            ids = reference.encode(text, add_special_tokens=special)
            assert tekken.encode(text, add_special_tokens=special) == ids
            assert dict(tekken(text, add_special_tokens=special)) == dict(
                reference(text, add_special_tokens=special)
            )
            for skip in (False, True):
                assert tekken.decode(ids, skip_special_tokens=skip) == reference.decode(
                    ids, skip_special_tokens=skip
                )
                assert tekken.convert_ids_to_tokens(ids, skip) == reference.convert_ids_to_tokens(ids, skip)
            assert tekken.get_special_tokens_mask(ids) == reference.get_special_tokens_mask(ids)
        assert tekken.tokenize(text) == reference.tokenize(text)
    rows = torch.tensor([[1, 29706, 2], [3, 2000, 4]])
    assert tekken.batch_decode(rows) == reference.batch_decode(rows)
    assert tekken.batch_decode(rows, skip_special_tokens=True) == reference.batch_decode(
        rows, skip_special_tokens=True
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": True, "padding_side": "right", "pad_to_multiple_of": 8, "return_length": True},
        {"padding": "max_length", "max_length": 30, "return_special_tokens_mask": True},
        {"truncation": True, "max_length": 3, "padding": True},
        {"add_special_tokens": False, "return_attention_mask": False, "return_special_tokens_mask": True},
    ],
)
def test_batches(tekken: MistralCommonTokenizer, reference: Any, options: dict[str, Any]) -> None:
    assert dict(tekken(TEXTS, **options)) == dict(reference(TEXTS, **options))
    single, theirs = tekken(TEXTS[0], **options), reference(TEXTS[0], **options)
    assert dict(single) == dict(theirs)
    if options.get("padding"):
        tensors = tekken(TEXTS, return_tensors="pt", **options)
        wanted = reference(TEXTS, return_tensors="pt", **options)
        assert {name: value.tolist() for name, value in tensors.items()} == {
            n: v.tolist() for n, v in wanted.items()
        }


def test_attributes(tekken: MistralCommonTokenizer, reference: Any) -> None:
    for name in ("bos", "eos", "unk", "pad"):
        for attribute in (f"{name}_token", f"{name}_token_id"):
            assert getattr(tekken, attribute) == getattr(reference, attribute)
    assert (len(tekken), tekken.vocab_size) == (len(reference), reference.vocab_size)
    assert tekken.get_vocab() == reference.get_vocab()
    assert tekken.model_input_names == reference.model_input_names
    assert (tekken.padding_side, tekken.truncation_side) == (
        reference.padding_side,
        reference.truncation_side,
    )
    assert tekken.model_max_length == reference.model_max_length


def test_tokens_to_ids(tekken: MistralCommonTokenizer, large: MistralCommonTokenizer) -> None:
    """Ids as `encode` gives them, controls too (transformers' class leaves out Tekken's offset and finds no controls)."""
    assert tekken.convert_tokens_to_ids(["[IMG]", "[IMG_BREAK]", "[IMG_END]"]) == [10, 12, 13]
    assert large.convert_tokens_to_ids(["[IMG]", "[IMG_BREAK]", "[IMG_END]"]) == [10, 14, 15]
    for tokenizer in (tekken, large):
        ids = tokenizer.encode("Some plain words", add_special_tokens=False)
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize("Some plain words")) == ids
        with pytest.raises(InputError, match="no token of this vocabulary"):
            tokenizer.convert_tokens_to_ids("no such token")


def conversation(file: Path) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What is [INST]?"}, {"type": "image", "path": str(file)}],
        },
        {"role": "assistant", "content": "An image."},
        {"role": "user", "content": "Sure?"},
    ]


def test_chats(tekken: MistralCommonTokenizer, reference: Any, tmp_path: Path) -> None:
    picture(40, 70).save(tmp_path / "a.png")
    wanted = reference.apply_chat_template(
        conversation(tmp_path / "a.png"), return_dict=True, return_tensors="pt"
    )
    out = tekken.apply_chat_template(conversation(tmp_path / "a.png"), return_dict=True, return_tensors="pt")
    assert torch.equal(out["input_ids"], wanted["input_ids"])
    assert torch.equal(out["attention_mask"], wanted["attention_mask"])
    assert torch.equal(out["pixel_values"], wanted["pixel_values"])
    assert out["image_sizes"].tolist() == [[48, 80]]
    text = conversation(tmp_path / "a.png")[2:]
    assert tekken.apply_chat_template(text[1:]) == reference.apply_chat_template(text[1:])
    batch = [text[1:], [{"role": "user", "content": "a longer question"}]]
    assert tekken.apply_chat_template(batch) == reference.apply_chat_template(batch)
    assert tekken.apply_chat_template(batch, tokenize=False) == reference.apply_chat_template(
        batch, tokenize=False
    )
    mine = tekken.apply_chat_template(batch, padding=True, return_tensors="pt", return_dict=True)
    theirs = reference.apply_chat_template(batch, padding=True, return_tensors="pt", return_dict=True)
    assert torch.equal(mine["input_ids"], theirs["input_ids"])
    assert torch.equal(mine["attention_mask"], theirs["attention_mask"])


def test_tools_and_continuing(tekken: MistralCommonTokenizer, reference: Any) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "description": "", "parameters": parameters}}]
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    chat = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "22", "tool_call_id": "abcdefgh1", "name": "f"},
        {"role": "assistant", "content": "so far"},
    ]
    mine = tekken.apply_chat_template(chat, tools=tools, continue_final_message=True)
    assert mine == reference.apply_chat_template(chat, tools=tools, continue_final_message=True)


def test_images_of_other_sizes_in_any_form(tekken: MistralCommonTokenizer) -> None:
    images = [
        {"type": "image", "image": picture(20, 20)},
        {"type": "image", "image": np.asarray(picture(40, 16))},
    ]
    chat = [{"role": "user", "content": [*images, {"type": "text", "content": "?"}]}]
    out = tekken.apply_chat_template(chat, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    assert out["image_sizes"].tolist() == [[32, 32], [48, 16]]
    assert out["pixel_values"].shape == (2, 3, 48, 32)
    assert out["pixel_values"][0, :, 32:].abs().sum() == 0
    first = [10, 10, 12, 10, 10, 13]
    assert out["input_ids"][0].tolist()[:8] == [1, 3, *first]
    lists = tekken.apply_chat_template(chat, return_dict=True)
    assert [pixels.shape for pixels in lists["pixel_values"]] == [(3, 32, 32), (3, 48, 16)]


@pytest.mark.parametrize("name", SPM)
def test_sentencepiece(name: str, tmp_path: Path) -> None:
    """Against mistral-common itself."""
    pytest.importorskip("sentencepiece")
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    shutil.copy(data_file(name), tmp_path)
    ours = MistralCommonTokenizer.from_pretrained(tmp_path)
    inner = MistralTokenizer.from_file(str(data_file(name))).instruct_tokenizer.tokenizer
    for text in TEXTS:
        assert ours.encode(text) == inner.encode(text, bos=True, eos=True)
        assert ours.decode(ours.encode(text), skip_special_tokens=True).strip() == text.strip()
    assert ours.pad_token is None
    assert ours.pad_token_id is None
    with pytest.raises(InputError, match="sentencepiece files have none"):
        ours(["a", "b c"], padding=True)


def test_ids_of_pixtral_large(large: MistralCommonTokenizer) -> None:
    """v7 with spaces and its own image ids (docs/formats.md, "Tokens of an image")."""
    image = {"type": "image", "image": picture(20, 20)}
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}, image]}]
    assert large.apply_chat_template(chat) == [1, 3, 10, 10, 14, 10, 10, 15, 1032, 4]


def test_folders(folder: Path, tekken: MistralCommonTokenizer, tmp_path: Path) -> None:
    tekken.save_pretrained(tmp_path)
    assert (tmp_path / "tekken.json").read_bytes() == (folder / "tekken.json").read_bytes()
    tekken.save_pretrained(folder)  # onto itself: nothing happens
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="no tokenizer of mistral-common"):
        MistralCommonTokenizer.from_pretrained(empty)
    (empty / "tekken.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no tokenizer that mistral-common reads"):
        MistralCommonTokenizer.from_pretrained(empty)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t("a", colour=1), "colour"),
        (lambda t: t.encode("a", colour=1), "colour"),
        (lambda t: t.decode([1], colour=1), "colour"),
        (lambda t: t("a", text_pair="b"), "text_pair"),
        (lambda t: t(3.5), "expected a text"),
        (lambda t: t.decode([-1]), "negative"),
        (lambda t: t.decode([200_000]), "beyond the vocabulary of 131072"),
        (lambda t: t.apply_chat_template("a", colour=1), "colour"),
        (
            lambda t: t.apply_chat_template([{"role": "assistant", "content": "a"}]),
            "refuses the conversation",
        ),
        (lambda t: t.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}]), "no source"),
        (lambda t: t.save_pretrained("x", push_to_hub=True), "push_to_hub"),
        (lambda t: MistralCommonTokenizer("/no/tekken.json"), "there is no file"),
    ],
)
def test_faults_are_named(tekken: MistralCommonTokenizer, call: Any, said: str) -> None:
    with pytest.raises(VitrailError, match=said):
        call(tekken)


def test_without_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mistral_common.tokens.tokenizers.mistral", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'vitrail\[mistral\]'"):
        MistralCommonTokenizer.from_pretrained(folder)


def test_processor_takes_it(tekken: MistralCommonTokenizer) -> None:
    """In a processor the tokenizer gives the ids of its own apply_chat_template."""
    from vitrail.processor.processor import load_processor

    processor = load_processor(DATA / "pixtral-0")
    mixed = type(processor)(processor.image_processor, tekken)
    chat = [{"role": "user", "content": "What is [IMG]?"}]
    expected = tekken.apply_chat_template(chat)
    assert mixed.apply_chat_template(chat, tokenize=True)[0].tolist() == expected
    assert mixed(text="<s>[INST]What is [/INST]")["input_ids"].tolist() == [
        [1, 3, *tekken.encode("What is ", add_special_tokens=False), 4]
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows(
    tekken: MistralCommonTokenizer, reference: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = list(range(1000, 1020))
    for owner in (tekken, reference):
        monkeypatch.setattr(owner, "truncation_side", side)
    for options in (
        {},
        {"truncation": True, "max_length": 7, "return_overflowing_tokens": True, "stride": 2},
        {"padding": "max_length", "max_length": 25, "return_special_tokens_mask": True, "padding_side": side},
        {"add_special_tokens": False, "return_special_tokens_mask": True, "return_length": True},
    ):
        assert dict(tekken.prepare_for_model(ids, **options)) == dict(
            reference.prepare_for_model(ids, **options)
        )
    made = tekken.prepare_for_model(ids, return_tensors="pt", prepend_batch_axis=True)
    assert made["input_ids"].shape == (1, 20)
    for remove, stride in ((0, 0), (5, 0), (5, 3), (19, 9)):
        cut = {"num_tokens_to_remove": remove, "stride": stride}
        assert tekken.truncate_sequences(ids, **cut) == reference.truncate_sequences(ids, **cut)
    with pytest.raises(InputError, match="cannot be removed"):
        tekken.truncate_sequences(ids, num_tokens_to_remove=20)
