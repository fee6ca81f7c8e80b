"""`return_assistant_tokens_mask` in the built-in formats: what `vitrail train` learns of the same conversation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from vitrail.errors import InputError
from vitrail.processor.processor import load_processor
from vitrail.processor.prompt_view import maker_of
from vitrail.prompts.builtin import FORMATS
from vitrail.tokenizer.mistral import MistralCommonTokenizer
from vitrail.train.conversations import read_talk
from vitrail.train.examples import IGNORED, ExampleMaker

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi [INST]"},
    {"role": "assistant", "content": "Hello </s> you."},
    {"role": "user", "content": "Again"},
    {"role": "assistant", "content": "left out", "weight": 0},
    {"role": "assistant", "content": "learned", "weight": 1},
]
MASK: dict[str, Any] = {"return_assistant_tokens_mask": True, "return_dict": True}


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("card", "v15")])
def test_built_format_marks_what_training_learns(tiny_llava: Path, tmp_path: Path, name: str) -> None:
    processor = load_processor(tiny_llava)
    maker = ExampleMaker(maker_of(processor), longest=1000, format=name)
    example = maker.make(read_talk({"messages": CHAT}, tmp_path))
    wanted = [int(label != IGNORED) for label in example.labels]
    for found in (
        processor.apply_chat_template(
            CHAT, format=name, mode="agnostic", tokenize=True, return_tensors=None, **MASK
        ),
        processor.tokenizer.apply_chat_template(CHAT, format=name, mode="agnostic", **MASK),
    ):
        (ids, mask) = (found["input_ids"], found["assistant_masks"])
        ids, mask = (ids[0], mask[0]) if isinstance(ids[0], list) else (ids, mask)
        assert (ids, mask) == (example.ids, wanted)
    assert 0 < sum(wanted) < len(wanted)


def test_built_format_marks_behind_an_image_and_padding(tiny_llava: Path) -> None:
    processor = load_processor(tiny_llava)
    shown = [
        {
            "role": "user",
            "content": [{"type": "image", "image": tiny.image(28, 42)}, {"type": "text", "text": "a"}],
        },
        {"role": "assistant", "content": "An answer."},
        {"role": "user", "content": "b"},
    ]
    rows = [shown, [{"role": "user", "content": "only this"}]]
    found = processor.apply_chat_template(rows, format="v7-tekken", tokenize=True, padding=True, **MASK)
    assert found["assistant_masks"].shape == found["input_ids"].shape
    first, second = found["assistant_masks"].bool()
    assert processor.decode(found["input_ids"][0][first]) == "An answer.</s>" and not second.any()


def test_turns_that_are_left_out_take_their_mask_along(tiny_llava: Path) -> None:
    tokenizer = load_processor(tiny_llava).tokenizer
    chat = [*CHAT[:3], {"role": "assistant", "content": "kept"}, {"role": "user", "content": "last"}]
    whole = tokenizer.apply_chat_template(chat, format="v7", **MASK)
    with pytest.warns(UserWarning, match="messages 0, 1 are left out"):
        cut = tokenizer.apply_chat_template(
            chat, format="v7", truncation=True, max_length=len(whole["input_ids"]) - 10, **MASK
        )
    marked = [i for i, m in zip(cut["input_ids"], cut["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "kept</s>"


def test_mistral_common_tokenizer_marks_answers() -> None:
    common = pytest.importorskip("mistral_common")
    tokenizer = MistralCommonTokenizer(Path(common.__file__).parent / "data" / "tekken_240911.json")
    chat = [*CHAT[:2], {"role": "user", "content": "b"}]
    found = tokenizer.apply_chat_template(chat, **MASK)
    plain = tokenizer.apply_chat_template(chat, return_dict=True)
    assert found["input_ids"] == plain["input_ids"] and "assistant_masks" not in plain
    marked = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert tokenizer.decode(marked) == "Hello </s> you.</s>" and marked.count(tokenizer.eos_token_id) == 1
    batch = tokenizer.apply_chat_template(
        [chat, chat[:1]], format="auto", padding=True, return_tensors="pt", **MASK
    )
    assert batch["assistant_masks"].sum(1).tolist() == [len(marked), 0]
    assert batch["assistant_masks"].shape == batch["input_ids"].shape
    with pytest.raises(InputError, match="needs tokenize=True and return_dict=True"):
        tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True)
