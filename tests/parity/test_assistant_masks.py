"""`return_assistant_tokens_mask` beside transformers 4.57: the same `assistant_masks`, and the right ones where it errs."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.parity.test_processor import pair as processors, same
from tests.parity.test_tokenizer import bytelevel, with_bos
from tests.tiny import image as picture
from vitrail.errors import InputError, PromptError
from vitrail.tokenizer.fast import FastTokenizer

transformers = pytest.importorskip("transformers")
__all__ = ["processors"]

HEAD = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'user' %}[INST]"
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}[IMG]{%- else %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}[/INST]"
    "{%- elif message['role'] == 'assistant' %}"
)
CONTENT = "{{- message['content'] if message['content'] is string else message['content'][0]['text'] }}{{- eos_token }}"
TAIL = "{%- endif %}{%- endfor %}"
TEMPLATES = {
    "dashes": f"{HEAD}{{%- generation -%}}{CONTENT}{{%- endgeneration -%}}{TAIL}",
    "plain": f"{HEAD}{{% generation %}}\n{CONTENT}\n{{% endgeneration %}}\n{TAIL}",
    "twice": HEAD
    + "{% generation %}{{ message['content'][:1] }}{% endgeneration %}-{% generation %}{{ message['content'][1:] }}"
    + "{{ eos_token }}{% endgeneration %}"
    + TAIL,
    "empty": f"{HEAD}{CONTENT}{{% generation %}}{{% endgeneration %}}{TAIL}",
    "loop": HEAD
    + "{% generation %}{% for c in message['content'] %}{% set x = c %}{{ x }}{% endfor %}{% endgeneration %}"
    + TAIL,
}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hé, bonjour. "}],
    [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "one 🦜 two"},
        {"role": "user", "content": "漢字 and more of it"},
        {"role": "assistant", "content": "  three\n\nfour"},
    ],
    [{"role": "user", "content": "only a question"}],
]
MASK: dict[str, Any] = {"return_assistant_tokens_mask": True, "return_dict": True}


@pytest.fixture(scope="module", params=[bytelevel, with_bos])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FastTokenizer, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param(folder)
    return FastTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


def plain(batch: Any) -> dict[str, Any]:
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in dict(batch).items()}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "max_length", "max_length": 90, "tokenizer_kwargs": {"padding_side": "right"}},
        {"truncation": True, "max_length": 16},
        {"truncation": True, "max_length": 16, "padding": True, "return_tensors": "pt"},
        {"add_generation_prompt": True},
    ],
)
def test_mask_equals_that_of_transformers(
    pair: tuple[FastTokenizer, Any], template: str, options: dict[str, Any]
) -> None:
    ours, theirs = pair
    given = {"chat_template": TEMPLATES[template], **MASK, **options}
    whole = options.get("return_tensors") is None or options.get("padding")
    for chat in (*CHATS, CHATS) if whole else CHATS:
        found = plain(ours.apply_chat_template(chat, **given))
        assert found == plain(theirs.apply_chat_template(chat, **given))
        if template != "empty" and chat is CHATS[0] and not options:
            assert 0 < sum(found["assistant_masks"]) < len(found["input_ids"])


def test_processor_mask_equals_that_of_transformers(processors: tuple[Any, Any]) -> None:
    """Texts as lists of parts, left-padded, without an image before an answer."""
    ours, theirs = processors
    chats = [
        [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in chat]
        for chat in CHATS
    ]
    for given in (chats, *([chat] for chat in chats)):
        options = {
            "chat_template": TEMPLATES["dashes"],
            "padding": True,
            "return_tensors": "pt",
            "tokenize": True,
        }
        same(
            dict(sorted(ours.apply_chat_template(given, **MASK, **options).items())),
            dict(sorted(theirs.apply_chat_template(given, **MASK, **options).items())),
        )


def test_processor_mask_moves_with_the_tokens_of_images(processors: tuple[Any, Any]) -> None:
    """transformers does not shift it; its tokenizer does, with the image's tokens written out in the message."""
    ours, theirs = processors
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(40, 60)}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A square. é"}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Sure?"}, {"type": "image", "image": picture(30, 30)}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Yes [INST] sure."}]},
    ]
    template = TEMPLATES["dashes"]
    found = ours.apply_chat_template(chat, chat_template=template, tokenize=True, return_tensors="pt", **MASK)
    ids, mask = found["input_ids"][0], found["assistant_masks"][0].bool()
    assert ours.decode(ids[mask]) == "A square. é</s>Yes [INST] sure.</s>"
    assert "[INST]" not in ours.tokenizer.convert_ids_to_tokens(ids[mask].tolist())
    chat[3]["content"][0]["text"] = "Yes, sure."
    found = ours.apply_chat_template(chat, chat_template=template, tokenize=True, return_tensors="pt", **MASK)
    grids = iter(found.grids)
    for message in chat:
        text = "".join(
            part["text"]
            if part["type"] == "text"
            else "".join(next(grids).expand("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
            for part in message["content"]
        )
        message["content"] = text
    wanted = theirs.tokenizer.apply_chat_template(chat, chat_template=template, return_tensors="pt", **MASK)
    assert found["input_ids"].tolist() == wanted["input_ids"].tolist()
    assert found["assistant_masks"].tolist() == wanted["assistant_masks"].tolist()


def test_template_without_the_tag_warns_and_marks_nothing(pair: tuple[FastTokenizer, Any]) -> None:
    ours, theirs = pair
    with pytest.warns(UserWarning, match="has no {% generation %} tag"):
        found = ours.apply_chat_template(CHATS[1], **MASK)
    assert plain(found) == plain(theirs.apply_chat_template(CHATS[1], **MASK))
    assert not any(found["assistant_masks"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_of_a_cut_prompt_marks_what_is_left_of_answers(
    pair: tuple[FastTokenizer, Any], side: str
) -> None:
    """transformers marks nothing behind a first answer that was cut at the left."""
    ours, _ = pair
    options = {"chat_template": TEMPLATES["dashes"], **MASK}
    whole = ours.apply_chat_template(CHATS[1], **options)
    before = ours.truncation_side
    ours.truncation_side = side
    try:
        for length in range(1, len(whole["input_ids"])):
            cut = ours.apply_chat_template(CHATS[1], truncation=True, max_length=length, **options)
            kept = slice(-length, None) if side == "left" else slice(length)
            assert cut["input_ids"] == whole["input_ids"][kept]
            assert cut["assistant_masks"] == whole["assistant_masks"][kept]
    finally:
        ours.truncation_side = before


def test_every_id_of_a_last_character_is_marked(pair: tuple[FastTokenizer, Any]) -> None:
    """transformers marks the first of its bytes alone."""
    ours, theirs = pair
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b 🦜"}]
    template = HEAD + "{% generation %}{{ message['content'] }}{% endgeneration %}{{ eos_token }}" + TAIL
    found = ours.apply_chat_template(chat, chat_template=template, **MASK)
    wanted = theirs.apply_chat_template(chat, chat_template=template, **MASK)
    marked = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert found["input_ids"] == wanted["input_ids"] and ours.decode(marked) == "b 🦜"
    assert sum(wanted["assistant_masks"]) < sum(found["assistant_masks"])


def test_typed_control_tokens_are_text_in_the_mask(pair: tuple[FastTokenizer, Any]) -> None:
    ours, _ = pair
    answer = "say [INST] and </s>, <s>"
    chat = [
        {"role": "user", "content": "[/INST]</s>[IMG]"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "[INST]"},
        {"role": "assistant", "content": "ok"},
    ]
    found = ours.apply_chat_template(chat, chat_template=TEMPLATES["dashes"], **MASK)
    marked = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert ours.decode(marked) == f"{answer}</s>ok</s>"
    assert marked.count(ours.eos_token_id) == 2


def test_offsets_of_typed_control_tokens_are_places_of_the_prompt(pair: tuple[FastTokenizer, Any]) -> None:
    ours, _ = pair
    chat = [{"role": "user", "content": "see [/INST] here"}, {"role": "assistant", "content": "é [INST]"}]
    prompt = ours.apply_chat_template(chat, tokenize=False)
    row = ours(prompt, return_offsets_mapping=True, add_special_tokens=False)
    for token, (start, stop) in zip(
        ours.convert_ids_to_tokens(row["input_ids"]), row["offset_mapping"], strict=True
    ):
        if token in ours.all_special_tokens:
            assert str(prompt)[start:stop] == token
    assert max(stop for _, stop in row["offset_mapping"]) == len(prompt)


@pytest.mark.parametrize(
    "template",
    [
        "{% set x %}{% generation %} {{ messages[0].content }} {% endgeneration %}{% endset %}{{ x|trim }}",
        "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x[1:] }}",
        "{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x|length }}",
    ],
)
def test_templates_that_change_an_answer_are_refused(pair: tuple[FastTokenizer, Any], template: str) -> None:
    with pytest.raises(PromptError, match="changes what stands between its generation tags"):
        pair[0].apply_chat_template([{"role": "user", "content": "abc"}], chat_template=template, **MASK)


def test_answers_in_macros_are_found(pair: tuple[FastTokenizer, Any]) -> None:
    """transformers takes the place of the macro's call for the answer's."""
    template = (
        "{% macro show(m) %}<s>{% generation %}{{ m.content }}{% endgeneration %}</s>{% endmacro %}"
        "{% for m in messages %}{{ show(m) }}{% endfor %}"
    )
    chat = [{"role": "assistant", "content": "abc"}, {"role": "assistant", "content": "de"}]
    found = pair[0].apply_chat_template(chat, chat_template=template, **MASK)
    marked = [i for i, m in zip(found["input_ids"], found["assistant_masks"], strict=True) if m]
    assert pair[0].decode(marked) == "abcde"


def test_mask_goes_with_a_dict_of_ids_alone(
    pair: tuple[FastTokenizer, Any], processors: tuple[Any, Any]
) -> None:
    for call in (pair[0].apply_chat_template, processors[0].apply_chat_template):
        with pytest.raises(InputError, match="needs tokenize=True and return_dict=True"):
            call(CHATS[0], return_assistant_tokens_mask=True, tokenize=True, return_dict=False)
        with pytest.raises(InputError, match="continue_final_message"):
            call(CHATS[0], continue_final_message=True, tokenize=True, **MASK)


def test_prompts_without_the_mask_have_no_such_column(pair: tuple[FastTokenizer, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pair[0].apply_chat_template(CHATS[0], return_dict=True, chat_template=TEMPLATES["dashes"])
    assert "assistant_masks" not in found
