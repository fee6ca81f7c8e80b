"""Built-in formats through tokenizers and processors: images beside, truncation, trusted strings, templates, faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.prompts import tokenizer, wheel_file
from vitrail.errors import CheckpointError, InputError, PromptError, UnsupportedError, VitrailError
from vitrail.processor.load import processor_parts
from vitrail.processor.processor import PixtralProcessor
from vitrail.tokenizer.mistral import MistralCommonTokenizer

IMAGE = {"type": "image", "image": Image.new("RGB", (40, 33), "red")}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is </s>?"}, IMAGE]},
    {"role": "assistant", "content": "A square. "},
    {"role": "user", "content": [IMAGE, {"type": "text", "text": "And [INST]?"}, IMAGE]},
]


@pytest.fixture(scope="module")
def processor() -> PixtralProcessor:
    return PixtralProcessor(**processor_parts(tokenizer("v7m1")))


def test_like_the_tokenizer_itself(processor: PixtralProcessor) -> None:
    """ids, pixels and sizes of mistral-common's own encoding, and of the builder on the tokenizer."""
    own = processor.tokenizer.apply_chat_template(CHAT, return_dict=True, return_tensors="pt")
    for out in (
        processor.apply_chat_template(CHAT, tokenize=True, return_dict=True),
        processor.apply_chat_template(CHAT, tokenize=True, return_dict=True, format="v7m1"),
        processor.tokenizer.apply_chat_template(CHAT, format="auto", return_dict=True, return_tensors="pt"),
    ):
        assert out["input_ids"].tolist() == own["input_ids"].tolist()
        assert out["image_sizes"].tolist() == own["image_sizes"].tolist()
        assert (out["pixel_values"] - own["pixel_values"]).abs().max() < 1e-5
    assert processor.tokenizer.apply_chat_template(CHAT, format="v7m1") == own["input_ids"][0].tolist()


def test_two_steps(processor: PixtralProcessor) -> None:
    once = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True)
    text = processor.apply_chat_template(CHAT)
    assert text == (
        "<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST][IMG] What is </s>?[/INST] A square.</s>[INST][IMG]"
        " And [INST]?[IMG][/INST]"
    )
    for again in (
        processor(text=text),
        processor(text=text, images=[p.source for p in text.rendered.images]),
    ):
        assert again["input_ids"].tolist() == once["input_ids"].tolist()
        assert (again["pixel_values"] == once["pixel_values"]).all()


def test_images_beside_the_messages(processor: PixtralProcessor) -> None:
    """An image without a source is a place; it is given to the processor, or missed."""
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    image = IMAGE["image"]
    assert processor(text=text, images=image)["image_sizes"].tolist() == [[48, 48]]
    with pytest.raises(InputError, match=r"1 .* 0 images"):
        processor(text=text)


def test_batches(processor: PixtralProcessor) -> None:
    """Rows of a batch are what each conversation is alone."""
    other = [{"role": "user", "content": [IMAGE]}]
    texts = processor.apply_chat_template([CHAT, other])
    rows = processor(text=texts, return_tensors=None)["input_ids"]
    assert rows[1] == processor.apply_chat_template(other, tokenize=True)[0].tolist()
    assert rows[0] == processor.apply_chat_template(CHAT, tokenize=True)[0].tolist()
    with pytest.raises(PromptError, match=r"conversation 1: messages\[0\]"):
        processor.apply_chat_template([CHAT, [{"role": "assistant", "content": "a"}]])


def test_trusted_strings(processor: PixtralProcessor) -> None:
    """In a string that one person wrote control tokens are recognised; a begin token is added where it is missing."""
    model = processor.tokenizer
    user = model.encode("hi", add_special_tokens=False)
    for text in ("<s>[INST] hi[/INST]", "[INST] hi[/INST]"):
        assert processor(text=text)["input_ids"].tolist() == [[1, 3, *user, 4]]
    assert processor(text="hi")["input_ids"].tolist() == [[1, *user]]
    out = processor(text="[INST][IMG][/INST]", images=IMAGE["image"])
    assert out["input_ids"].tolist() == [[1, 3, *([10] * 3 + [14]) * 2, *[10] * 3, 15, 4]]
    assert processor(text="hi hi hi hi", truncation=True, max_length=3)["input_ids"].shape == (1, 3)


def test_a_template_with_a_mistral_tokenizer(processor: PixtralProcessor) -> None:
    """A template's control tokens are ids, those that a user typed are text."""
    template = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }}[/INST]{% endfor %}"
    other = PixtralProcessor(processor.image_processor, processor.tokenizer, chat_template=template)
    chat = [{"role": "user", "content": "[IMG] a [/INST]</s>"}]
    ids = other.apply_chat_template(chat, tokenize=True)[0].tolist()
    assert ids == processor.apply_chat_template(chat, tokenize=True)[0].tolist()
    assert [index for index in ids if index in set(processor.tokenizer.all_special_ids)] == [1, 3, 4]


def test_truncation_drops_the_oldest_and_says_so(processor: PixtralProcessor) -> None:
    whole = processor.apply_chat_template(CHAT, tokenize=True)[0].tolist()
    with pytest.warns(UserWarning, match="messages 1, 2 are left out"):
        out = processor.apply_chat_template(
            CHAT, tokenize=True, return_dict=True, truncation=True, max_length=len(whole) - 2
        )
    kept = processor.apply_chat_template([CHAT[0], CHAT[3]], tokenize=True, return_dict=True)
    assert out["input_ids"].tolist() == kept["input_ids"].tolist()
    assert out["image_sizes"].tolist() == kept["image_sizes"].tolist()
    assert (out["pixel_values"] == kept["pixel_values"]).all()
    with pytest.raises(PromptError, match="too short by"):
        processor.apply_chat_template(CHAT, tokenize=True, truncation=True, max_length=9)
    # The tokenizer alone, no format named.
    with pytest.warns(UserWarning, match="messages 1, 2 are left out"):
        out = processor.tokenizer.apply_chat_template(
            CHAT, return_dict=True, return_tensors="pt", truncation=True, max_length=len(whole) - 2
        )
    assert out["input_ids"].tolist() == kept["input_ids"].tolist()
    assert out["image_sizes"].tolist() == kept["image_sizes"].tolist()
    same = processor.tokenizer.apply_chat_template(CHAT, truncation=True, max_length=len(whole))
    assert same == processor.tokenizer.apply_chat_template(CHAT) == whole


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"format": "v8"}, PromptError, "format is one of v1, v2"),
        ({"format": "v7m1", "chat_template": "x"}, InputError, "not both"),
        ({"colour": 1}, InputError, "colour"),
        ({"documents": [{}]}, UnsupportedError, "documents"),
        ({"mode": "exam"}, InputError, "mode is one of test"),
        ({"tools": "draw"}, PromptError, "tools: expected a list"),
        ({"tools": [{"type": "function"}]}, PromptError, r"tools\[0\].function: missing"),
        ({"reasoning_effort": "high"}, PromptError, "reasoning_effort: .*accepted by format"),
    ],
)
def test_faults(
    processor: PixtralProcessor, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        processor.apply_chat_template([{"role": "user", "content": "a"}], **options)


def test_text_tokenizers_have_no_images() -> None:
    with pytest.raises(CheckpointError, match="text alone"):
        processor_parts(tokenizer("v3"))
    with pytest.raises(PromptError, match=r"content\[0\]: .* no image .*v7m1"):
        tokenizer("v3").apply_chat_template([{"role": "user", "content": [IMAGE]}], format="auto")


def test_files_that_are_no_tokenizers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tekken.json nor \*.model.v"):
        MistralCommonTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text(json.dumps({"config": {"version": "v99"}, "vocab": []}))
    with pytest.raises(VitrailError, match=r"tekken\.json"):
        MistralCommonTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tekken.json").write_text("{")
    with pytest.raises(VitrailError, match=r"tekken\.json"):
        MistralCommonTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tekken.json").unlink()
    shutil.copy(wheel_file("tokenizer.model.v1"), tmp_path / "tokenizer.model.v99")
    with pytest.raises(CheckpointError, match="v99"):
        MistralCommonTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.model.v99").rename(tmp_path / "tokenizer.model.v3")
    with open(tmp_path / "tokenizer.model.v3", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"tokenizer.model.v3"):
        MistralCommonTokenizer.from_pretrained(tmp_path)


@pytest.mark.slow
def test_reasoning_effort() -> None:
    """v15's settings; without a format named, too."""
    model = tokenizer("v15")
    shown = {}
    for effort in ("none", "high"):
        ids = model.apply_chat_template([{"role": "user", "content": "a"}], reasoning_effort=effort)
        shown[effort] = model.decode(ids)
    assert (
        shown["high"].replace("high", "none")
        == shown["none"]
        == model.decode(model.apply_chat_template([{"role": "user", "content": "a"}]))
    )
    with pytest.raises(PromptError, match="reasoning_effort: expected one of none, high"):
        model.apply_chat_template([{"role": "user", "content": "a"}], reasoning_effort="huge")
