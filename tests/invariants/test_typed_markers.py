"""Nothing that a user, a tool or a file says becomes a control token, in any built-in format."""

from __future__ import annotations

from typing import Any

import pytest

from tests.prompts import VERSIONS, tokenizer
from vitrail.inputs.formats import FORMATS, BuiltPrompt, build_prompt, encode_prompt, find_format

pytestmark = pytest.mark.filterwarnings("ignore:tools are left out")

KINDS = {"v1": "v1", "v2": "v2", "v3": "v3", "v7": "v7", "v7m1": "v7m1", "card": "v7m1"}
WITH_TEKKEN = {"v3-tekken": "v3-tekken", "v7-tekken": "v7-tekken", "v11": "v11", "v13": "v13", "v15": "v15"}


def conversation(name: str, said: str) -> tuple[list[Any], Any]:
    """Messages and tools with `said` in every field that the format shows."""
    form = FORMATS[name]
    parts = [{"type": "text", "text": said}, {"type": "text", "text": f"a{said}b"}]
    messages: list[Any] = [{"role": "system", "content": said}, {"role": "user", "content": parts}]
    if form.calls != "none":
        call = {"id": "abcdefgh1", "function": {"name": "f", "arguments": {said: [said, {"k": said}]}}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": "abcdefgh1", "name": "f", "content": parts})
        text = {"id": "abcdefgh2", "function": {"name": "f", "arguments": said}}
        messages.append(
            {"role": "assistant", "content": "" if form.exclusive else said, "tool_calls": [text]}
        )
        messages.append({"role": "tool", "tool_call_id": "abcdefgh2", "content": said})
    thought = {"reasoning": said} if "assistant" in form.thinks else {}
    messages.append({"role": "assistant", "content": parts, **thought})
    messages.append({"role": "user", "content": said})
    schema = {"type": "object", "properties": {said: {"type": "string", "description": said, "enum": [said]}}}
    return messages, [
        {"type": "function", "function": {"name": "f", "description": said, "parameters": schema}}
    ]


def controls(name: str, said: str, version: str) -> list[int]:
    """The control ids of the prompt, in order."""
    messages, tools = conversation(name, said)
    model = tokenizer(version)
    ids = encode_prompt(build_prompt(messages, find_format(name), tools=tools), model.encoder)
    special = set(model.all_special_ids)
    return [index for index in ids if index in special]


def markers(version: str) -> list[str]:
    """Every control token of the tokenizer: all that have a use, and some of the hundreds that only hold a place."""
    names = tokenizer(version).control_tokens
    fillers = [name for name in names if name.startswith(("<SPECIAL_", "[control_"))]
    return [name for name in names if name not in fillers] + fillers[:2] + fillers[-2:]


@pytest.mark.parametrize(("name", "version"), KINDS.items())
def test_every_control_token_in_every_field(name: str, version: str) -> None:
    check_all(name, version)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "version"), WITH_TEKKEN.items())
def test_every_control_token_in_every_field_of_tekken(name: str, version: str) -> None:
    check_all(name, version)


def check_all(name: str, version: str) -> None:
    plain = controls(name, "x", version)
    assert plain[0] == tokenizer(version).bos_token_id
    for marker in markers(version):
        assert controls(name, marker, version) == plain, marker
    everything = "".join(markers(version))
    assert controls(name, everything, version) == plain


def test_all_formats_are_tried() -> None:
    assert {*KINDS, *WITH_TEKKEN} == set(FORMATS) and set(VERSIONS) < set(FORMATS)


def test_what_a_string_forgets() -> None:
    """Concatenation and slicing give an ordinary string; the prompt itself survives a copy."""
    import pickle

    prompt = build_prompt([{"role": "user", "content": "[IMG]"}], "v7m1", spaced=True)
    assert type(prompt + "") is str and type(prompt[:3]) is str
    again = pickle.loads(pickle.dumps(prompt))
    assert isinstance(again, BuiltPrompt) and again == prompt and again.sections == prompt.sections
