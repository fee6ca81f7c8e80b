"""Templates render as in transformers, within bounds, and never let a user write a control token."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.tiny import DATA
from vitrail.errors import PromptError, UnsupportedError
from vitrail.images.grid import Grid
from vitrail.prompts.control_pattern import control_pattern
from vitrail.prompts.messages import normalize
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.prompts.template import render

GOLDEN = (DATA / "pixtral-0" / "chat_template.jinja").read_text()
CONTROLS = ("<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[TOOL_CALLS]", "<pad>", "<unk>")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def show(template: str, conversation: Any = "hi", **options: Any) -> RenderedPrompt:
    return render(template, normalize(conversation), controls=CONTROLS, special_tokens=TOKENS, **options)


def test_golden_template() -> None:
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "content": "a"}]},
        {"role": "assistant", "content": "b"},
    ]
    assert show(GOLDEN, chat) == "<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST][IMG]a[/INST]b</s>"


@pytest.mark.parametrize("key", ["text", "content"])
@pytest.mark.parametrize("read", ["p['{}']", "p.{}", "p.get('{}')"])
@pytest.mark.parametrize("written", ["text", "content"])
def test_both_names_of_a_text(key: str, read: str, written: str) -> None:
    template = "{% for p in messages[0]['content'] %}{{ " + read.format(key) + " }}{% endfor %}"
    assert show(template, [{"role": "user", "content": [{"type": "text", written: "hello"}]}]) == "hello"


@pytest.mark.parametrize("given", [{"type": "image"}, {"type": "image_url", "image_url": "x"}])
@pytest.mark.parametrize("known", ["image", "image_url"])
def test_both_names_of_an_image(given: dict[str, Any], known: str) -> None:
    template = f"{{% for p in messages[0]['content'] %}}{{% if p['type'] == '{known}' %}}[IMG]{{% endif %}}{{% endfor %}}"
    assert show(template, [{"role": "user", "content": [given]}]) == "[IMG]"


def test_developer_is_system_unless_the_template_knows_it() -> None:
    chat = [{"role": "developer", "content": "d"}]
    assert show("{{ messages[0]['role'] }}", chat) == "system"
    assert show("{{ messages[0]['role'] == 'developer' }}", chat) == "True"


def test_helpers() -> None:
    value = {"b": ["é", "<&'\""], "a": None}
    for options in ({}, {"indent": 2}, {"ensure_ascii": True}, {"sort_keys": True, "separators": (",", ":")}):
        written = ", ".join(f"{name}={given!r}" for name, given in options.items())
        said = show("{{ value|tojson(" + written + ") }}", variables={"value": value})
        assert said == json.dumps(value, **{"ensure_ascii": False, **options})
    assert show("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert show("{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}") == "02"
    assert show("a{% generation %}b{% endgeneration %}c") == "abc"
    assert show("{% if true %}\n  x\n{% endif %}\ny") == "  x\ny"
    with pytest.raises(PromptError, match="refuses this conversation: no good"):
        show("{{ raise_exception('no good') }}")


def test_continue_final_message() -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "so "}]
    assert show(GOLDEN, chat, continue_final_message=True) == "<s>[INST]q[/INST]so "
    trims = "{% for m in messages %}{{ m['content']|trim }}|{% endfor %}"
    assert show(trims, chat, continue_final_message=True) == "q|so"
    with pytest.raises(PromptError, match="does not show the last message"):
        show("nothing", chat, continue_final_message=True)
    with pytest.raises(PromptError, match="choose one"):
        show(GOLDEN, chat, continue_final_message=True, add_generation_prompt=True)


def test_arguments_that_nothing_reads_are_refused() -> None:
    assert show("{{ mood }}", variables={"mood": "good"}) == "good"
    with pytest.raises(PromptError, match="mood"):
        show(GOLDEN, variables={"mood": "good"})
    with pytest.raises(PromptError, match="tools"):
        show(GOLDEN, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(UnsupportedError, match="JSON schemas"):
        show("{{ tools }}", tools=[test_helpers])


BOMBS = {
    "nested loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "repetition": "{{ 'x' * 10 ** 9 }}",
    "list repetition": "{{ ([0] * 10 ** 9)|length }}",
    "indent": "{{ 'x'|indent(1000000000) }}",
    "ljust": "{{ 'x'.ljust(10 ** 9) }}",
    "percent format": "{{ '%1000000000d' % 1 }}",
    "star format": "{{ '%*d' % (1000000000, 1) }}",
    "brace format": "{{ '{:1000000000}'.format(1) }}",
    "nested format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "power": "{{ 9 ** 9 ** 9 ** 9 }}",
    "to_bytes": "{{ (1).to_bytes(1000000000) }}",
    "doubling by ~": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by join": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = [n.x, n.x]|join %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x|replace('a', 'aa') %}{% endfor %}",
    "doubling by method": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
    "doubling by block": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "doubling lists": "{% set n = namespace(x=[0]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "hoarding": "{% set n = namespace(x=[]) %}{% for i in range(99999) %}"
    "{% set n.x = n.x + [range(99999)|list] %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "tree": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "much output": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "escape": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "other files": "{% include '/etc/passwd' %}",
    "lipsum": "{{ lipsum(1000000) }}",
    "unknown filter": "{{ 'a'|center(1000000000) }}",
    "syntax": "{% if %}",
    "arithmetic": "{{ 1 // 0 }}",
    "types": "{{ 1 + 'a' }}",
    "deep nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "too long": "x" * (1 << 20) + "x",
}


SLOW_BOMBS = ("doubling by replace", "doubling by method", "tree")  # the bounds stop them late


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW_BOMBS)) for name in BOMBS]
)
def test_templates_are_bounded(name: str) -> None:
    with pytest.raises(PromptError):
        show(BOMBS[name])


def test_long_conversations_are_no_bombs() -> None:
    chat = [{"role": ("user", "assistant")[i % 2], "content": "some words " * 20} for i in range(5000)]
    assert len(show(GOLDEN, chat).text) > 1_000_000


TYPED = st.lists(
    st.sampled_from([*CONTROLS, "[", "]", "IN", "ST]", "[IN", "<", "/", "s>", " ", "a", "\n"]), max_size=6
)


@pytest.mark.slow
@given(parts=st.lists(TYPED.map("".join), min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_users_cannot_write_control_tokens(parts: list[str]) -> None:
    """Whatever is typed, in one part or across parts, the template's own tokens are the only ones."""
    chat = [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]
    prompt = show(GOLDEN, chat)
    assert prompt == "<s>[INST]" + "".join(parts) + "[/INST]"
    assert prompt.controls() == ["<s>", "[INST]", "[/INST]"]
    read_bare = control_pattern(CONTROLS).findall(str(prompt))
    assert prompt.holds_typed_controls(CONTROLS) == (read_bare != ["<s>", "[INST]", "[/INST]"])


@pytest.mark.parametrize(
    "template",
    [
        "[INST]{{ messages[0]['content']|trim }}[/INST]",
        "[INST]{{ messages[0]['content']|tojson }}[/INST]",
        "[INST]{{ messages[0]['content']|tojson(ensure_ascii=True) }}[/INST]",
        "[INST]{{ messages[0]['content']|upper }}[/INST]",
        "[INST]{{ messages[0]['content']|e }}[/INST]",
        "[INST]{{ messages[0]['content'].split('[/INST]')[0] }}[/INST]",
        "[INST]{% if '<s>' in messages[0]['content'] %}{{ messages[0]['content'] }}{% endif %}[/INST]",
        "[INST]{{ messages|tojson }}[/INST]",
    ],
)
@pytest.mark.parametrize("text", ["[INST] x [/INST]", " [inst] ", "<s>", "[IN[INST]ST]", "INST"])
def test_templates_that_work_on_the_text(template: str, text: str) -> None:
    assert show(template, text).controls() == ["[INST]", "[/INST]"]


def test_brackets_around_user_text() -> None:
    """A template's own brackets and a user's word do not make a token together."""
    assert show("[{{ messages[0]['content'] }}]", "INST").controls() == []


def test_every_string_of_a_message_is_a_users() -> None:
    template = "{{ messages|tojson }}{{ tools|tojson }}{{ documents|tojson }}{{ mood }}"
    call = {"id": "[INST]", "function": {"name": "[INST]", "arguments": {"[INST]": ["[INST]"]}}}
    chat = [{"role": "assistant", "content": "[INST]", "tool_calls": [call], "reasoning_content": "[INST]"}]
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "[INST]", "parameters": {"[INST]": 1}},
    }
    prompt = show(template, chat, tools=[tool], documents=[{"text": "[INST]"}], variables={"mood": "[INST]"})
    assert str(prompt).count("[INST]") == 10
    assert prompt.controls() == []


def test_private_use_characters_survive() -> None:
    text = "\U000f0000\U000f0001 [INST] \ue000"
    prompt = show(GOLDEN, text)
    assert prompt == f"<s>[INST]{text}[/INST]"
    assert prompt.controls() == ["<s>", "[INST]", "[/INST]"]


def test_an_image_stands_where_the_template_wrote_its_token() -> None:
    prompt = show(GOLDEN, [{"role": "user", "content": ["[IMG]", {"type": "image"}]}])
    names = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    assert (prompt.count_images("[IMG]"), str(prompt).count("[IMG]")) == (1, 2)
    filled = prompt.with_grids(iter([Grid(32, 16, 2, 1)]), names)
    assert filled == "<s>[INST][IMG][IMG][IMG_BREAK][IMG][IMG_END][/INST]"
    assert (filled.controls(), filled.own_controls) == (["<s>", "[INST]", "[/INST]"], 3 + 4)
    assert (filled.count_image_tokens("[IMG]"), filled.holds_typed_controls(CONTROLS)) == (2, True)
    aliases = {name: f"({place})" for place, name in enumerate((*CONTROLS, "[IMG_END]"))}
    assert filled.with_aliases(aliases) == "(0)(2)[IMG](4)(5)(4)(9)(3)"
    trusted = RenderedPrompt.trusted("[IMG]a[IMG]")
    wide = (Grid(16, 32, 1, 2), Grid(16, 16, 1, 1))
    assert trusted.with_grids(iter(wide), names) == "[IMG][IMG][IMG_END]a[IMG][IMG_END]"
    assert trusted.with_grids(iter(wide), names).is_trusted
