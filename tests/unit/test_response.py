"""Answers of models → text, reasoning and tool calls: every form, every fault, at every split of the stream."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from vitrail.errors import InputError
from vitrail.responses.events import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Fault,
    Piece,
    ReasoningDelta,
    Response,
    TextDelta,
)
from vitrail.responses.parser import ResponseParser, parse_response
from vitrail.tokenizer.fast import FastTokenizer

DATA = Path(__file__).parents[1] / "golden" / "data" / "mistral3-0"
CONTROLS = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]", "</s>")
LATER = ("[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]")


def make_tokenizer() -> FastTokenizer:
    """A byte-level tokenizer of 400 ids with every control token, under ids of its own."""
    tokenizer = FastTokenizer.from_pretrained(DATA)
    tokenizer.add_special_tokens({"additional_special_tokens": list(LATER)})
    return tokenizer


TOKENIZER = make_tokenizer()
MARKS = re.compile(
    "(" + "|".join(map(re.escape, (*CONTROLS, "[TOOL_RESULTS]", "[INST]", "<pad>", "[IMG]"))) + ")"
)


def ids_of(answer: str) -> list[int]:
    """The ids of an answer in which every control token's name stands for its id."""
    return [i for part in MARKS.split(answer) if part for i in one(part)]


def one(part: str) -> list[int]:
    """The id of a control token, or the ids of a text, in which nothing is a control token."""
    if MARKS.fullmatch(part):
        return [TOKENIZER.convert_tokens_to_ids(part)]
    ids: list[int] = TOKENIZER.encode(part, add_special_tokens=False)
    return ids


def counter() -> Callable[[], str]:
    """Ids new0, new1, …"""
    numbers = itertools.count()
    return lambda: f"new{next(numbers)}"


def parse(answer: str, **options: Any) -> Response:
    """The answer read whole."""
    return parse_response(TOKENIZER, ids_of(answer), new_id=counter(), **options)


def calls(response: Response) -> list[tuple[str, str, str, bool]]:
    """(name, arguments, id, is_json) of each call."""
    return [(call.name, call.arguments, call.id, call.is_json) for call in response.tool_calls]


def told(pieces: Iterable[Piece]) -> list[Piece]:
    """Pieces with neighbours of one kind put together."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + piece.text)
        elif isinstance(piece, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            out[-1] = ArgumentsDelta(piece.index, last.text + piece.text)
        elif isinstance(piece, ReasoningDelta) and isinstance(last, ReasoningDelta) and not piece.opens:
            out[-1] = ReasoningDelta(last.text + piece.text, last.opens, last.closes or piece.closes)
        else:
            out.append(piece)
    return out


def stream(groups: Iterable[Sequence[int]], **options: Any) -> tuple[list[Piece], Response]:
    """The pieces and the response of ids that come in groups."""
    parser = ResponseParser(TOKENIZER, new_id=counter(), **options)
    pieces = [piece for group in groups for piece in parser.feed(group)]
    pieces += parser.finish()
    return pieces, parser.response


FORMS = {
    "text": ("Hello.</s>", "Hello.", "", []),
    "v2": (
        '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]</s>',
        "",
        "",
        [("f", '{"a": 1}', "new0", True)],
    ),
    "v3 to v7": (
        'Let me see.[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "]"]}, "id": "abcdefgh1"}, '
        '{"name": "g", "arguments": {}, "id": "abcdefgh2"}]</s>',
        "Let me see.",
        "",
        [("f", '{"a": [1, "]"]}', "abcdefgh1", True), ("g", "{}", "abcdefgh2", True)],
    ),
    "other order": (
        '[TOOL_CALLS][{"id": "abcdefgh1", "arguments": {"a": 1}, "type": "function", "name": "f"}]</s>',
        "",
        "",
        [("f", '{"a": 1}', "abcdefgh1", True)],
    ),
    "no arguments": ('[TOOL_CALLS][{"name": "f"}]</s>', "", "", [("f", "{}", "new0", True)]),
    "null id": ('[TOOL_CALLS][{"name": "f", "id": null}]</s>', "", "", [("f", "{}", "new0", True)]),
    "number": ('[TOOL_CALLS][{"name": "f", "arguments": 12}]</s>', "", "", [("f", "12", "new0", True)]),
    "one object": ('[TOOL_CALLS]{"name": "f", "arguments": {}}</s>', "", "", [("f", "{}", "new0", True)]),
    "v11": (
        'a[TOOL_CALLS]f[CALL_ID]abcdefgh1[ARGS]{"q": "é"}[TOOL_CALLS]g[CALL_ID]abcdefgh2[ARGS]{}</s>',
        "a",
        "",
        [("f", '{"q": "é"}', "abcdefgh1", True), ("g", "{}", "abcdefgh2", True)],
    ),
    "v13": (
        "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS][1]</s>",
        "",
        "",
        [("f", "{}", "new0", True), ("g", "[1]", "new1", True)],
    ),
    "v13 without arguments": ("[TOOL_CALLS]f[ARGS]</s>", "", "", [("f", "{}", "new0", True)]),
    "a name alone": ("[TOOL_CALLS]f</s>", "", "", [("f", "{}", "new0", True)]),
    "no [ARGS]": ('[TOOL_CALLS]f{"a": 1}</s>', "", "", [("f", '{"a": 1}', "new0", True)]),
    "card": (
        'a[TOOL_CALLS] [{"name": "f", "arguments": {"q": "[/TOOL_CALLS]"}, "id": "abcdefgh1"}][/TOOL_CALLS]b</s>',
        "ab",
        "",
        [("f", '{"q": "[/TOOL_CALLS]"}', "abcdefgh1", True)],
    ),
    "text after calls": (
        '[TOOL_CALLS][{"name": "f"}] [/TOOL_CAB</s>',
        " [/TOOL_CAB",
        "",
        [("f", "{}", "new0", True)],
    ),
    "reasoning": ("[THINK]hm[/THINK]yes</s>", "yes", "hm", []),
    "reasoning between": ("a[THINK]b[/THINK]c[THINK]d</s>", "ac", "bd", []),
    "calls out of reasoning": ("[THINK]b[TOOL_CALLS]f[ARGS]{}</s>", "", "b", [("f", "{}", "new0", True)]),
    "typed markers": (
        '"[TOOL_CALLS]" is text</s>'.replace("[TOOL", "[ TOOL"),
        '"[ TOOL_CALLS]" is text',
        "",
        [],
    ),
    "padding": ("<pad>a<pad></s><pad><pad>", "a", "", []),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    """Text, reasoning and calls of each form; a proper answer has no faults."""
    answer, text, reasoning, expected = FORMS[form]
    response = parse(answer)
    assert response.text == text
    assert response.reasoning == reasoning
    assert calls(response) == expected
    assert response.faults == ()
    assert response.ended_by == "</s>"
    assert response.rest == ()


BROKEN = {
    "not JSON": ("[TOOL_CALLS]f[ARGS]{a: 1}</s>", "", [("f", "{a: 1}", "new0", False)]),
    "NaN": ("[TOOL_CALLS]f[ARGS]NaN</s>", "", [("f", "NaN", "new0", False)]),
    "text behind": ("[TOOL_CALLS]f[ARGS]{} done</s>", "", [("f", "{} done", "new0", False)]),
    "cut off": ('[TOOL_CALLS]f[ARGS]{"a": ', "", [("f", '{"a": ', "new0", False)]),
    "cut before arguments": ("[TOOL_CALLS]f[ARGS]", "", [("f", "", "new0", False)]),
    "cut in a number": ("[TOOL_CALLS]f[ARGS]12", "", [("f", "12", "new0", False)]),
    "cut in an id": ("[TOOL_CALLS]f[CALL_ID]abc", "", [("f", "", "new0", False)]),
    "cut in a name": ("a[TOOL_CALLS]get_wea", "aget_wea", []),
    "cut list": ('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1', "new0", False)]),
    "cut after arguments": ('[TOOL_CALLS][{"name": "f", "arguments": {}', "", [("f", "{}", "new0", True)]),
    "cut before the name": ('[TOOL_CALLS][{"na', '[{"na', []),
    "open list": ('[TOOL_CALLS][{"name": "f", "arguments": {}}</s>', "", [("f", "{}", "new0", True)]),
    "list in single quotes": ("[TOOL_CALLS][{'name': 'f'}]</s>", "[{'name': 'f'}]", []),
    "arguments in single quotes": (
        '[TOOL_CALLS][{"name": "f", "arguments": {\'a\': \'}\'}}, {"name": "g"}]</s>',
        "",
        [("f", "{'a': '}'}}, {\"name\": \"g\"}]", "new0", False)],
    ),
    "no name": ('[TOOL_CALLS][{"arguments": {}}]</s>', '[{"arguments": {}}]', []),
    "name is a number": ('[TOOL_CALLS][{"name": 1}]</s>', '[{"name": 1}]', []),
    "key twice": (
        '[TOOL_CALLS][{"name": "f", "name": "g"}]</s>',
        "",
        [("f", ', "name": "g"}]', "new0", False)],
    ),
    "second broken": (
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, oops]</s>',
        ", oops]",
        [("f", "{}", "new0", True)],
    ),
    "prose": ("[TOOL_CALLS]I would call f.</s>", "I would call f.", []),
    "prose with a brace": ("[TOOL_CALLS]I call {f}</s>", "I call {f}", []),
    "nothing": ("a[TOOL_CALLS]</s>", "a", []),
    "[ARGS] alone": ("a[ARGS]b</s>", "ab", []),
    "[/THINK] alone": ("a[/THINK]b</s>", "ab", []),
    "an image": ("a[IMG]b</s>", "ab", []),
    "same id": (
        "[TOOL_CALLS]f[CALL_ID]x[ARGS]{}[TOOL_CALLS]g[CALL_ID]x[ARGS]{}</s>",
        "",
        [("f", "{}", "x", True), ("g", "{}", "new0", True)],
    ),
    "unknown key": (
        '[TOOL_CALLS][{"name": "f", "x": 1, "arguments": {}}]</s>',
        "",
        [("f", "{}", "new0", True)],
    ),
    "huge number": ("[TOOL_CALLS]f[ARGS]" + "1" * 5000 + "</s>", "", [("f", "1" * 5000, "new0", False)]),
    "deep": ("[TOOL_CALLS]f[ARGS]" + "[" * 3000 + "</s>", "", [("f", "[" * 3000, "new0", False)]),
    "deep list": ('[TOOL_CALLS][{"name": ' + "[" * 2000 + "</s>", '[{"name": ' + "[" * 2000, []),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_comes_back_with_a_flag(case: str) -> None:
    """Never an exception; the characters are in the text or the arguments, and `faults` says why."""
    answer, text, expected = BROKEN[case]
    response = parse(answer)
    assert response.text == text
    assert calls(response) == [(n, a, i, ok) for n, a, i, ok in expected]
    assert response.faults


@pytest.mark.slow
@pytest.mark.parametrize("case", [*FORMS, *BROKEN])
def test_every_split_gives_the_same(case: str) -> None:
    """Id by id, and cut in two at every place: the same pieces and the same response."""
    ids = ids_of((FORMS.get(case) or BROKEN[case])[0])
    whole, response = stream([ids])
    for cut in range(0, len(ids) + 1, max(1, len(ids) // 12)):
        pieces, again = stream([ids[:cut], ids[cut:]])
        assert told(pieces) == told(whole)
        assert again == response
    pieces, again = stream([[i] for i in ids] if len(ids) < 300 else [ids])
    assert told(pieces) == told(whole)
    assert again == response


@st.composite
def answers(draw: st.DrawFn) -> list[int]:
    """Ids of anything: control tokens in any order, scraps of JSON, text of all scripts, single bytes."""
    scraps = st.sampled_from(
        [
            '[{"name": "f"',
            ', "arguments": ',
            '{"a": "b"}',
            "}]",
            "[/TOOL_CALLS]",
            '"',
            "\\",
            "{",
            "}",
            "[",
            "]",
            " f ",
            ",",
        ]
    )
    part = st.one_of(
        st.sampled_from((*CONTROLS[:-1], "[IMG]")).map(one),
        scraps.map(one),
        st.text(max_size=5).filter(lambda t: not MARKS.search(t)).map(one),
        st.integers(0, len(TOKENIZER) - 1).filter(lambda i: i != TOKENIZER.eos_token_id).map(lambda i: [i]),
    )
    ids = [i for ids in draw(st.lists(part, max_size=12)) for i in ids]
    return ids + one("</s>") if draw(st.booleans()) else ids


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(answers(), st.data())
def test_any_ids_at_any_split(ids: list[int], data: st.DataObject) -> None:
    """Nothing raises, every grouping gives the same, and the pieces add up to the response."""
    whole, response = stream([ids])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    groups = [ids[a:b] for a, b in itertools.pairwise([0, *cuts, len(ids)])]
    for grouping in (groups, [[i] for i in ids]):
        pieces, again = stream(grouping)
        assert told(pieces) == told(whole)
        assert again == response
    assert "".join(p.text for p in whole if isinstance(p, TextDelta)) == response.text
    assert "".join(p.text for p in whole if isinstance(p, ReasoningDelta)) == response.reasoning
    begun = [p.index for p in whole if isinstance(p, CallBegin)]
    assert (
        begun == [p.index for p in whole if isinstance(p, CallEnd)] == list(range(len(response.tool_calls)))
    )
    assert [p.message for p in whole if isinstance(p, Fault)] == list(response.faults)
    for call in response.tool_calls:
        assert call.name and call.id
        assert not call.is_json or json.loads(call.arguments) == call.value
    assert len({call.id for call in response.tool_calls}) == len(response.tool_calls)


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)
TOOL = st.tuples(st.from_regex(r"[a-zA-Z0-9_-]{1,20}", fullmatch=True), VALUES)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.text(),
    st.lists(TOOL, min_size=1, max_size=3),
    st.sampled_from(["v7", "v11", "v13", "card"]),
    st.booleans(),
)
def test_calls_come_back(text: str, tools: list[tuple[str, Any]], form: str, pretty: bool) -> None:
    """Any arguments, written in any way that is JSON, come back as they were written."""
    written = [json.dumps(value, ensure_ascii=pretty, indent=2 if pretty else None) for _, value in tools]
    ids = plain(text) if text else []
    if form in ("v7", "card"):
        items = [
            f'{{"name": "{name}", "arguments": {arguments}, "id": "id{n}"}}'
            for n, ((name, _), arguments) in enumerate(zip(tools, written, strict=True))
        ]
        listed = "[" + ", ".join(items) + "]" + ("[/TOOL_CALLS]" if form == "card" else "")
        ids += one("[TOOL_CALLS]") + plain(listed)
    else:
        for n, ((name, _), arguments) in enumerate(zip(tools, written, strict=True)):
            ids += one("[TOOL_CALLS]") + plain(name)
            ids += one("[CALL_ID]") + plain(f"id{n}") if form == "v11" else []
            ids += one("[ARGS]") + plain(arguments)
    pieces, response = stream([[i] for i in [*ids, *one("</s>")]])
    assert response.text == TOKENIZER.decode(plain(text) if text else [])
    names = [f"new{n}" if form == "v13" else f"id{n}" for n in range(len(tools))]
    assert calls(response) == [(t[0], a, i, True) for t, a, i in zip(tools, written, names, strict=True)]
    assert response.faults == ()
    assert [p.name for p in pieces if isinstance(p, CallBegin)] == [name for name, _ in tools]


def plain(text: str) -> list[int]:
    """The ids of a text in which nothing is a control token."""
    ids: list[int] = TOKENIZER.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_pieces_are_openais_deltas() -> None:
    """What a client of a stream puts together from the deltas."""
    answer = '[THINK]hm[/THINK]Hi[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abcdefgh1"}]</s>'
    pieces, response = stream([[i] for i in ids_of(answer)])
    message: dict[str, Any] = {"content": "", "reasoning": ""}
    call: dict[str, Any] = {}
    for delta in (piece.delta() for piece in pieces):
        for name in ("content", "reasoning"):
            message[name] += delta.get(name, "")
        for part in delta.get("tool_calls", []):
            assert part["index"] == 0
            call.setdefault("arguments", "")
            call["arguments"] += part.get("function", {}).get("arguments", "")
            call |= {
                k: v
                for k, v in {"id": part.get("id"), "name": part.get("function", {}).get("name")}.items()
                if v
            }
    assert message == {"content": "Hi", "reasoning": "hm"}
    assert call == {"name": "f", "arguments": '{"a": 1}', "id": "abcdefgh1"}
    assert response.as_openai() == {
        "role": "assistant",
        "content": "Hi",
        "reasoning": "hm",
        "tool_calls": [
            {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    }
    assert response.as_message()["content"] == [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "Hi"},
    ]


def test_arguments_stream_before_the_call_is_complete() -> None:
    """A client sees the function as soon as it is named, and the arguments as they come."""
    parser = ResponseParser(TOKENIZER)
    pieces = parser.feed(ids_of('[TOOL_CALLS][{"name": "f", "arguments": {"a": 1'))
    assert pieces == [CallBegin(0, "f", None), ArgumentsDelta(0, '{"a": 1')]


def test_fresh_ids_are_there_from_the_beginning() -> None:
    """ids="fresh": the model's own are not waited for."""
    answer = '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefgh1"}]</s>'
    pieces, response = stream([ids_of(answer)], ids="fresh")
    assert pieces[0] == CallBegin(0, "f", "new0")
    assert response.tool_calls[0].id == "new0"


def test_ids_of_calls_have_the_form_that_prompts_demand() -> None:
    """Nine letters and digits, never the same."""
    response = parse_response(TOKENIZER, ids_of("[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]f[ARGS]{}</s>"))
    first, second = (call.id for call in response.tool_calls)
    assert re.fullmatch("[a-zA-Z0-9]{9}", first) and re.fullmatch("[a-zA-Z0-9]{9}", second)
    assert first != second


def test_no_character_is_split() -> None:
    """Bytes of one character that come as several ids come out together."""
    text = "né 👩‍👩‍👧 画像を"
    for answer in (text, f"[THINK]{text}", f'[TOOL_CALLS]f[ARGS]{{"q": "{text}"}}'):
        pieces, response = stream([[i] for i in ids_of(answer + "</s>")])
        assert all("\ufffd" not in str(piece) for piece in pieces)
        assert text in response.text + response.reasoning + "".join(c.arguments for c in response.tool_calls)


def test_an_open_think_of_the_prompt_is_gone_on_with() -> None:
    """A prompt that ends inside [THINK] makes the answer begin with reasoning."""
    response = parse("hm[/THINK]yes</s>", prompt=ids_of("a[INST]b[THINK]Well"))
    assert (response.reasoning, response.text, response.faults) == ("hm", "yes", ())
    response = parse("hm</s>", prompt=ids_of("[THINK]a[/THINK][INST]b"))
    assert (response.reasoning, response.text) == ("", "hm")


def test_an_invented_turn_is_left_out_and_kept() -> None:
    """A model that goes on with somebody else's turn has ended its own."""
    response = parse("a[TOOL_CALLS]f[ARGS]{}[TOOL_RESULTS]22</s>")
    assert response.text == "a"
    assert response.ended_by == "[TOOL_RESULTS]"
    assert TOKENIZER.decode(response.rest) == "[TOOL_RESULTS]22"
    assert "another turn" in response.faults[0]
    assert "without the prompt" in parse("[INST]a").faults[0]


def test_what_follows_the_end_is_kept() -> None:
    """Ids after </s> are no part of the answer; padding is not told."""
    response = parse("a</s><pad>b")
    assert response.text == "a"
    assert TOKENIZER.decode(response.rest) == "b"


def test_mistakes_are_told() -> None:
    """No ids, ids after the end, an unknown policy."""
    with pytest.raises(InputError, match="negative"):
        parse_response(TOKENIZER, [-1])
    with pytest.raises(InputError, match="expected ids"):
        parse_response(TOKENIZER, ["a"])
    with pytest.raises(InputError, match="fresh"):
        ResponseParser(TOKENIZER, ids="new")  # type: ignore[arg-type]
    parser = ResponseParser(TOKENIZER)
    parser.finish()
    with pytest.raises(InputError, match="finished"):
        parser.feed([5])
