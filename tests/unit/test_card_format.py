"""The Pixtral Large card's format, rule by rule as docs/prompts.md has them."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.conversations import WORDS
from tests.prompts import tokenizer
from vitrail.errors import PromptError
from vitrail.prompts.builtin import build_prompt, encode_prompt

IMAGE = {"type": "image"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
TOOLS_TEXT = (
    '[AVAILABLE_TOOLS] [{"type": "function", "function": {"name": "f", "description": "", "parameters": '
    '{"type": "object"}}}][/AVAILABLE_TOOLS]'
)


def call(identity: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def called(identity: str) -> str:
    return f'{{"name": "f", "arguments": {{}}, "id": "{identity}"}}'


def says(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def result(identity: str, content: Any = "r") -> dict[str, Any]:
    return says("tool", content, tool_call_id=identity)


def parts(*items: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": item} if isinstance(item, str) else item for item in items]


A, B = "aaaaaaaa1", "bbbbbbbb2"
CALLS_A = says("assistant", "x", tool_calls=[call(A)])
CALLED_A = f"[TOOL_CALLS] [{called(A)}][/TOOL_CALLS]"


@pytest.mark.parametrize(
    ("messages", "tools", "shown"),
    [
        # 1. system anywhere, never merged
        (
            [
                says("user", "u"),
                says("assistant", "a"),
                says("system", "s"),
                says("system", "t"),
                says("user", "v"),
            ],
            None,
            "[INST] u[/INST] a</s>[SYSTEM_PROMPT] s[/SYSTEM_PROMPT][SYSTEM_PROMPT] t[/SYSTEM_PROMPT][INST] v[/INST]",
        ),
        # 2. user turns in a row stay apart
        ([says("user", "u"), says("user", "v")], None, "[INST] u[/INST][INST] v[/INST]"),
        # 3. images where they stand, texts joined by nothing
        (
            [
                says("user", parts("a", "", "b", IMAGE, "c")),
                says("assistant", parts(IMAGE, "d ", IMAGE)),
            ],
            None,
            "[INST] ab[IMG]c[/INST][IMG]d [IMG]</s>",
        ),
        # 4. tools in the last user turn before the first call
        (
            [says("user", "u"), says("user", "v"), says("assistant", "a"), says("user", "w")],
            TOOLS,
            f"[INST] u[/INST][INST] v[/INST] a</s>[INST] w{TOOLS_TEXT}[/INST]",
        ),
        (
            [says("user", "u"), CALLS_A, result(A), says("user", "w")],
            TOOLS,
            f"[INST] u{TOOLS_TEXT}[/INST] x{CALLED_A}[TOOL_RESULTS] r[/TOOL_RESULTS]</s>[INST] w[/INST]",
        ),
        # 5. spaces at an answer's end are cut, calls without a text
        ([says("user", "u"), says("assistant", "a  ")], None, "[INST] u[/INST] a</s>"),
        (
            [says("user", "u"), says("assistant", None, tool_calls=[call(A), call(B)])],
            None,
            f"[INST] u[/INST][TOOL_CALLS] [{called(A)}, {called(B)}][/TOOL_CALLS]</s>",
        ),
        # 6. results in the order of the calls, images among them
        (
            [
                says("user", "u"),
                says("assistant", "x", tool_calls=[call(A), call(B)]),
                result(B, parts("b", IMAGE)),
                result(A, parts(IMAGE)),
            ],
            None,
            f"[INST] u[/INST] x[TOOL_CALLS] [{called(A)}, {called(B)}][/TOOL_CALLS][TOOL_RESULTS] [IMG][/TOOL_RESULTS]"
            "[TOOL_RESULTS] b[IMG][/TOOL_RESULTS]",
        ),
        # 7. an answer to results belongs to the turn; assistants in a row do not
        (
            [says("user", "u"), CALLS_A, result(A), says("assistant", "y"), says("assistant", "z")],
            None,
            f"[INST] u[/INST] x{CALLED_A}[TOOL_RESULTS] r[/TOOL_RESULTS] y</s> z</s>",
        ),
    ],
)
def test_rules(messages: list[Any], tools: Any, shown: str) -> None:
    prompt = build_prompt(messages, "card", tools=tools)
    assert prompt == f"<s>{shown}"
    encoder = tokenizer("v7m1").encoder
    ids = encode_prompt(prompt, encoder)
    model = tokenizer("v7m1")
    assert "".join(model.convert_ids_to_tokens(ids)).replace("▁", " ") == str(prompt)
    typed = {model.convert_tokens_to_ids(f"[{name}]") for name in ("INST", "/INST", "IMG")}
    assert typed & set(ids) == {i for i in typed if model.convert_ids_to_tokens(i) in prompt.text}


def test_continued() -> None:
    messages = [says("user", "u"), says("assistant", "so far ")]
    assert build_prompt(messages, "card", continue_final_message=True) == "<s>[INST] u[/INST] so far"


@pytest.mark.parametrize(
    ("messages", "tools", "said"),
    [
        ([says("user", "u"), result(A)], None, r"messages\[1\].tool_call_id: a result without a call"),
        (
            [says("user", "u"), CALLS_A, result(A), result(A)],
            None,
            r"messages\[3\].tool_call_id: a second result",
        ),
        ([says("user", "u"), CALLS_A, says("assistant", "a")], None, r"messages\[2\]: 1 results are missing"),
        ([says("user", "u"), says("assistant", "")], None, r"messages\[1\].content: .* empty"),
        ([says("system", parts(IMAGE))], None, r"messages\[0\].content\[0\]: .* no image"),
        ([says("system", "s")], TOOLS, "tools: .* user's turn"),
        (
            [says("user", "u"), says("assistant", "", tool_calls=[call("short")])],
            None,
            r"tool_calls\[0\].id: .* nine",
        ),
        (
            [
                says("user", "u"),
                says("assistant", parts({"type": "thinking", "thinking": "t"}, "a")),
                says("user", "v"),
            ],
            None,
            r"messages\[1\].content\[0\]: .* thinking .*accepted by format 'v13' or 'v15'",
        ),
    ],
)
def test_refused(messages: list[Any], tools: Any, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        build_prompt(messages, "card", tools=tools)


def test_strict_formats_name_it() -> None:
    """What v7m1 refuses and the card promises is refused with the card's name."""
    image_in_result = [says("user", "u"), CALLS_A, result(A, parts(IMAGE))]
    late_system = [says("user", "u"), says("assistant", "a"), says("system", "s"), says("user", "v")]
    image_in_answer = [says("user", "u"), says("assistant", parts(IMAGE)), says("user", "v")]
    for messages in (image_in_result, late_system, image_in_answer):
        with pytest.raises(PromptError, match=r"^messages\[[0-9]\].*accepted by format .*'card'"):
            build_prompt(messages, "v7m1")


def test_plain_conversations_are_v7m1s() -> None:
    """Texts that are not empty, roles in turn, no tools: id for id the strict format."""
    encoder = tokenizer("v7m1").encoder
    choose = random.Random(3)
    for _ in range(100):
        roles = ["system"] * choose.randint(0, 1)
        roles += list(itertools.islice(itertools.cycle(("user", "assistant")), 1 + 2 * choose.randint(0, 3)))
        texts = [
            " ".join(choose.choices([w for w in WORDS if w.strip()], k=choose.randint(1, 4))) for _ in roles
        ]
        messages = [says(role, text) for role, text in zip(roles, texts, strict=True)]
        strict = encode_prompt(build_prompt(messages, "v7m1"), encoder)
        assert encode_prompt(build_prompt(messages, "card"), encoder) == strict
