"""A stranger's template is stopped whatever it does, with one PromptError, and the next one renders as before."""

from __future__ import annotations

import resource
import sys
import threading
from datetime import date, datetime
from typing import Any

import pytest

from tests.tiny import DATA
from vitrail.errors import PromptError, UnsupportedError
from vitrail.prompts import template as templates
from vitrail.prompts.messages import ImagePart, Message, TextPart, normalize
from vitrail.prompts.render import DEFAULT_TEMPLATE
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.prompts.template import render
from vitrail.reader import embedded_path
from vitrail.tokenizer.fast import FastTokenizer

GOLDEN = (DATA / "pixtral-0" / "chat_template.jinja").read_text()
NEST = "{% set ns = namespace(a=()) %}{% for i in range(300000) %}{% set ns.a = (ns.a,) %}{% endfor %}"
TWICE = (
    "{% set ns = namespace(a=[], b=[]) %}{% for i in range(45) %}"
    "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
)
LONG = "{% set s = 'x' * 100000 %}"
NESTED = {
    "a key": NEST + "{% set d = {ns.a: 1} %}{{ d|length }}",
    "in": NEST + "{{ ns.a in {} }}{{ ns.a in [1] or 1 // 0 }}",
    "groupby": NEST + "{{ [{'k': ns.a}, {'k': ns.a}]|groupby('k')|list|length }}{{ {ns.a: 1} }}",
    "string": NEST + "{{ ns.a }}",
    "tojson": NEST + "{{ ns.a|tojson }}",
    "equal": NEST + "{% set b = ns.a %}" + NEST.replace("ns", "m") + "{{ m.a == b }}{{ 1 // 0 }}",
}
MEMORY = {
    "join": LONG + "{{ ''.join([s] * 20000)|length }}",
    "a list": LONG + "{{ [s] * 20000 }}",
    "string": LONG + "{{ (([s] * 20000)|string)|length }}",
    "tojson": LONG + "{{ ([s] * 20000)|tojson|length }}{{ 1 // 0 }}",
    "percent": "{{ (('%(a)9999d' * 150000) % {'a': 1})|length }}",
    "format": "{{ ('{0:9999}' * 150000).format('x')|length }}{{ 1 // 0 }}",
    "expandtabs": "{{ ('\\t' * 150000).expandtabs(9999)|length }}{{ 1 // 0 }}",
    "strftime_now": "{{ strftime_now('%250Y' * 4000000)|length }}{{ 1 // 0 }}",
    "split": "{{ ('a ' * 100000000).split()|length }}",
    "a fault": LONG + "{{ raise_exception(s * 2000) }}",
    "much": "{{ 'x' * 10000000 }}",
}
TIME = {
    "comparing": TWICE + "{{ ns.a == ns.b }}",
    "tojson": TWICE + "{{ (ns.a|tojson)|length }}",
    "string": TWICE + "{{ ns.a }}",
    "colons": "{{ (':' * 2000000).format() }}",
    "sum": "{{ ([[0] * 100000] * 9000)|sum(start=[])|length }}",
    "number": "{{ ('9' * 2000000)|int // 7 }}{{ 1 // 0 }}",
    "count": "{{ ('a' * 400000 ~ 'b').count('a' * 200000 ~ 'b') }}" * 400 + "{{ 1 // 0 }}",
}
COMPILING = {
    "parentheses": "{{ " + "(" * 90000 + "1" + ")" * 90000 + " }}",
    "sums": "{{ " + "+".join("1" * 90000) + " }}",
    "nots": "{{ " + "not " * 90000 + "1 }}",
    "attributes": "{{ a" + ".b" * 90000 + " }}",
    "lists": "{{ " + "[" * 90000 + "]" * 90000 + " }}",
    "ifs": "{% if 1 %}" * 20000 + "{% endif %}" * 20000,
    "loops": "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
    "constant": "{{ 'a' * 10 ** 10 }}",
    "constant filter": "{{ 'x'|indent(10000000000)|length }}{{ 'x'|indent(10000000000) }}",
    "constant number": "{{ 9 ** 9 ** 9 }}",
    "constant join": "{{ (['x'] * 1000000000)|join }}",
    "a number": "{{ " + "9" * 900000 + " }}",
    "unclosed": "{{" * 300000,
    "comment": "{#" * 400000,
}


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 0.6)


def show(template: str, conversation: Any = "hi", **options: Any) -> RenderedPrompt:
    return render(template, normalize(conversation), controls=("[INST]", "[/INST]", "[IMG]"), **options)


@pytest.mark.parametrize("source", [*NESTED.values(), *MEMORY.values(), *TIME.values(), *COMPILING.values()],
                         ids=[*NESTED, *MEMORY, *TIME, *COMPILING])  # fmt: skip
def test_whatever_a_template_does_it_is_one_error(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PromptError) as error:
        show(source)
    assert len(str(error.value)) <= 10_000 and "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
    monkeypatch.setattr(templates, "MAX_SECONDS", 60.0)
    assert show("{{ messages[0]['content'] }}[INST]", "x").controls() == ["[INST]"]


@pytest.mark.slow
def test_a_stopped_template_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PromptError, match=r"it takes too long, more than 0\.6 s"):
        show(TIME["comparing"])
    monkeypatch.setattr(templates, "MAX_SECONDS", 30.0)
    with pytest.raises(PromptError, match=r"it takes too much memory|too much text"):
        show(MEMORY["join"])
    with pytest.raises(PromptError, match=r"ended its process|nested"):
        show(NESTED["a key"])


def test_a_refusal_keeps_its_words() -> None:
    with pytest.raises(
        PromptError, match=r"^the chat template refuses this conversation: no\ngood é \U000f0000$"
    ):
        show("{{ raise_exception('no\ngood é \U000f0000') }}")


def test_too_large_a_conversation_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitrail.prompts import template_request

    monkeypatch.setattr(template_request, "MAX_REQUEST", 10_000)
    with pytest.raises(PromptError, match=r"has 1\d,\d\d\d bytes; at most 10,000 are shown"):
        show(GOLDEN, "x" * 10_000)


def test_a_long_text_takes_its_length_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 60.0)
    text = "words 22 [INST] é \U0001f600 " * 20_000
    prompt = show(GOLDEN, text, special_tokens={"bos_token": "", "eos_token": ""})
    assert str(prompt) == f"[INST]{text}[/INST]" and prompt.controls() == ["[INST]", "[/INST]"]
    upper = show("[INST]{{ messages[0]['content']|upper }}", text)
    assert str(upper) == f"[INST]{text.upper()}" and upper.controls() == ["[INST]"]


def test_values_arrive_as_they_are() -> None:
    values = {
        "numbers": [0, -1, 1 << 70, 0.1, 1e300, float("inf"), True, None],
        "texts": ["", "\x00\x01", "\ud800", "\U0010ffff", '"\\', "\u2028"],
        "keys": {1: "one", None: "none", 2.5: "x", "\0": "zero", (1, 2): "pair"},
        "tuple": (1, (2, "a")),
        "day": date(2024, 2, 29),
        "moment": datetime(2024, 2, 29, 12, 30, 1, 5),
    }
    source = (
        "{{ numbers }}|{{ texts }}|{{ keys }}|{{ tuple }}|{{ day }} {{ day.strftime('%d %b') }}|{{ moment }}"
    )
    want = "|".join(
        str(value)
        for value in (
            values["numbers"],
            values["texts"],
            values["keys"],
            [1, [2, "a"]],
            "2024-02-29 29 Feb",
            values["moment"],
        )
    )
    assert str(show(source, variables=values)) == want


def test_what_no_template_reads_is_passed_by() -> None:
    odd = object()
    message = Message(
        "user", (TextPart("a", {"x": odd}), ImagePart(odd, {"more": {odd}})), extra={"pixels": b"1"}
    )
    source = (
        "{% for p in messages[0]['content'] %}{{ p['text'] if p['type'] == 'text' else '[IMG]' }}{% endfor %}"
    )
    assert render(source, [message]) == "a[IMG]"
    assert render("{{ messages[0]['pixels'] is defined }}", [message]) == "True"
    looks = (
        "['pixels']",
        "['pixels']|length",
        ".pixels.x",
        "|tojson",
        ".pixels == 1",
        ".pixels|list",
        ".pixels or 1",
    )
    for look in looks:
        with pytest.raises(PromptError, match=r"bytes|_Unsent"):
            render("{{ messages[0]" + look + " }}", [message])


def test_too_deep_values_are_one_error() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for more in ({"variables": {"deep": deep}}, {"documents": [{"deep": deep}]}):
        with pytest.raises(PromptError, match="nested too deeply"):
            show("{{ deep }}{{ documents }}", **more)
    with pytest.raises(PromptError, match="nested too deeply"):
        show(
            DEFAULT_TEMPLATE,
            [{"role": "user", "content": "x", "deep": deep}],
            special_tokens={"bos_token": ""},
        )


def test_own_templates_need_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of digests is that of the files; nothing is started for them, nor for the embedded reader's prompt."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a process is started")

    monkeypatch.setattr(templates._worker, "ask", refuse)
    reader = (embedded_path() / "chat_template.jinja").read_text()
    assert set(templates._OWN_TEMPLATES) == {templates._digest(DEFAULT_TEMPLATE), templates._digest(reader)}
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "[IMG]"}]}]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    assert str(show(DEFAULT_TEMPLATE, chat, special_tokens=names)) == "<s>[INST][IMG][IMG][/INST]"
    own = FastTokenizer.from_pretrained(embedded_path()).apply_chat_template(chat, tokenize=False)
    assert own.rendered.count_images("[IMG]") == 1
    with pytest.raises(AssertionError):
        show(reader + " ", chat)


@pytest.mark.parametrize("source", [DEFAULT_TEMPLATE, (embedded_path() / "chat_template.jinja").read_text()])
def test_own_templates_render_alike_in_both_places(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [
        {"role": "system", "content": "s [IMG]"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a [INST] é"}]},
        {"role": "assistant", "content": "img"},
        {"role": "user", "content": "[/INST] 22"},
    ]
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    here = show(source, chat, special_tokens=names)
    monkeypatch.setattr(templates, "_OWN_TEMPLATES", {})
    assert show(source, chat, special_tokens=names) == here


def test_threads_share_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_SECONDS", 60.0)
    found: dict[int, str] = {}

    def one(number: int) -> None:
        for turn in range(5):
            found[number * 10 + turn] = str(show("{{ messages[0]['content'] }}", f"{number} {turn}"))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n * 10 + turn: f"{n} {turn}" for n in range(4) for turn in range(5)}


def test_without_processes_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    templates._worker.stop()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(
        UnsupportedError, match="the chat templates of checkpoints are run by a second Python process"
    ):
        show("{{ messages }}")


STRANGE = (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"masked": "x"}', b'{"masked": 1, "base": 983040}')


@pytest.mark.parametrize(
    "answer", [*STRANGE, b'{"masked": "x", "base": 0}', b'{"masked": "x", "base": true}']
)
def test_a_strange_answer_is_refused(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates._worker, "ask", lambda *_: answer)
    with pytest.raises(PromptError, match="does not answer as it should"):
        show(GOLDEN)
