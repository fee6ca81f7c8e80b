"""Long answers are read in time linear in their length; outputs that vLLM's tests of its parser hold are read."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.unit.test_response import TOKENIZER, counter, ids_of, parse
from vitrail.responses.events import Piece
from vitrail.responses.parser import ResponseParser, parse_response
from vitrail.responses.tool_calls import CallReader


@pytest.mark.slow
def test_long_answers_take_time_in_proportion() -> None:
    """Floods of what a scanner could look at again and again: a quarter of a million characters each."""
    size = 250_000
    for flood in (
        '[{"name": "f"}]' + " " * size,
        '[{"name": "f", "arguments": ' + "[" * size,
        '[{"name": "f", "arguments": "' + "\\\\" * size,
        "[" + " " * size,
        "[" + '{"name": "f"},' * (size // 14),
        "f" * size,
        "[" + "".join(f'{{"name":"f","id":"{n}"}},' for n in range(size // 20)),
        "[" + '{"name": "f", "id": "same"},' * (size // 28),
        "[" + '{"arguments": {"a": [1, {"b": "]}"}]}, "name": "f"},' * (size // 50),
        '[{"name": "f", "arguments": "' + '\\"' * size,
    ):
        pieces: list[Piece] = []
        reader = CallReader(pieces.append, counter(), fresh=False)
        began = time.process_time()
        reader.enter()
        for start in range(0, len(flood), 5):
            reader.take(flood[start : start + 5])
        reader.leave(cut=True)
        assert time.process_time() - began < 20  # a thousand times that, were it quadratic
        assert pieces


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "[TOOL_CALLS]f[ARGS]{}",
        "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}",
        "[TOOL_CALLS] [CALL_ID]",
        "[TOOL_CALLS]f[CALL_ID]" + "a" * 50 + "[CALL_ID]" * 5,
        "[THINK]a[/THINK]b",
        "[ARGS]",
        "[IMG]",
        "x",
    ],
)
def test_many_control_tokens_take_time_in_proportion(part: str) -> None:
    """Twenty thousand ids, at once and one by one, give the same."""
    some = ids_of(part)
    ids = some * (20_000 // len(some))
    began = time.process_time()
    whole = parse_response(TOKENIZER, ids, new_id=counter())
    parser = ResponseParser(TOKENIZER, new_id=counter())
    for index in ids:
        parser.feed([index])
    parser.finish()
    assert parser.response == whole
    assert time.process_time() - began < 12  # seconds; a thousand times that, were it quadratic
    assert len(whole.tool_calls) in (0, len(ids) // len(some))


# What vLLM's tests of its parser for Mistral hold (tests/tool_parsers/test_mistral_tool_parser.py): outputs of models, and
# (text, calls with their arguments). Where vLLM writes arguments anew or searches junk for a list, they are left as written.
OF_VLLM: list[tuple[str, str, list[tuple[str, Any]]]] = [
    ("This is a test", "This is a test", []),
    ('[TOOL_CALLS]  [ {"name":"add" , "arguments" : {"a": 3, "b": 4} } ]', "", [("add", {"a": 3, "b": 4})]),
    ('[TOOL_CALLS] [{"arguments":{"name": "John Doe"}, "name": "get_age"}]', "", [("get_age", {"name": "John Doe"})]),
    ('Hello[TOOL_CALLS] [{"name": "add", "arguments":{"a": 1}}]', "Hello", [("add", {"a": 1})]),
    ('[TOOL_CALLS] [{"name": "w", "arguments":{"c": "D"}}]\nextra data', "\nextra data", [("w", {"c": "D"})]),
    ('[TOOL_CALLS] [{"name": "a", "arguments":{}}, {"name": "b", "arguments":{"x": 3}}]', "",
     [("a", {}), ("b", {"x": 3})]),
    ('[TOOL_CALLS][{"name": "a", "arguments":{"a": 1}}][TOOL_CALLS][{"name": "b", "arguments":{}}]', "",
     [("a", {"a": 1}), ("b", {})]),
    ("[TOOL_CALLS] not json at all", " not json at all", []),
    ('[TOOL_CALLS]add_this_and_that{"a": 3.5, "b": 4}', "", [("add_this_and_that", {"a": 3.5, "b": 4})]),
    ('bla[TOOL_CALLS]add{"a": 3}[TOOL_CALLS]multiply{"b": 6}', "bla", [("add", {"a": 3}), ("multiply", {"b": 6})]),
    ("hi{hi[TOOL_CALLS]bash{\"command\": \"print(\\\"hello!\\\")\\nre.compile(r'{}')\"}", "hi{hi",
     [("bash", {"command": "print(\"hello!\")\nre.compile(r'{}')"})]),
    ("hi{hi[TOOL_CALLS]bash{\"command\": \"re.compile(r'{}')", "hi{hi", [("bash", "{\"command\": \"re.compile(r'{}')")]),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "text", "expected"), OF_VLLM)
def test_outputs_of_vllm_tests_are_read(answer: str, text: str, expected: list[tuple[str, Any]]) -> None:
    ids = ids_of(answer)
    parser = ResponseParser(TOKENIZER, new_id=counter())
    for index in ids:  # one id at a time, as vLLM's streaming tests do
        parser.feed([index])
    parser.finish()
    for response in (parse(answer), parser.response):
        assert response.text.strip() == text.strip()
        assert [(call.name, call.value) for call in response.tool_calls] == expected
        assert len({call.id for call in response.tool_calls}) == len(expected)
