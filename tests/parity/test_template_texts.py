"""Templates that look at users' texts give what transformers' Jinja gives, and no typed text becomes a control token."""

# ruff: noqa: SIM905

from __future__ import annotations

import json
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vitrail.prompts.messages import normalize
from vitrail.prompts.rendered_prompt import RenderedPrompt
from vitrail.prompts.template import render

CONTROLS = (
    *(f"<SPECIAL_{n}>" for n in range(20, 1000)),
    *("<s>", "</s>", "[IMG]", "[INST]", "[/INST]", "[IMG_END]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[PREFIX]"),
)
TEXTS = [
    *"22;5;404;0022;2.5;-22;1e3;; ; 22 ;\t22\n;img;IMG;Img end;inst;INST;tool;tool_calls;END;s;x;<;];/s;_".split(
        ";"
    ),
    *"[INST]; [inst] ;<s>;[IMG][IMG];[/INST] [INST];pre;PREFIX;special;zz top;naïve;a,b,c;img, tool;one two img".split(
        ";"
    ),
    *"<b>img & 'x'</b>|{'img': 22}|été INST|ﬁ|İ|ǅ|٣|22²|ſ|a;b%s{}|100%".split("|"),
]
METHODS = [
    *"upper() lower() title() capitalize() swapcase() casefold() strip() lstrip('[i') rstrip(']t') isdigit()".split(),
    *"isalpha() isalnum() isdecimal() isnumeric() isupper() islower() istitle() isspace() isidentifier()".split(),
    *"isascii() isprintable() startswith('pre') startswith(('i','I')) endswith('g') find('m') rfind('m')".split(),
    *"count('i') index('i') replace('i','o') replace('img','[IMG]') split() split(',') rsplit('m',1)".split(),
    *"splitlines() partition('m') rpartition('2') join(['[',']']) removeprefix('i') removesuffix('g')".split(),
    *"center(9) ljust(9,'.') rjust(9) zfill(6) expandtabs(2) encode() format() __len__()".split(),
]
FILTERS = [
    *"upper lower title capitalize trim int float string length first last list reverse sort|join unique|join".split(),
    *"wordcount e escape forceescape tojson tojson(ensure_ascii=True) tojson(indent=2) default('[IMG]')".split(),
    *"default('[IMG]',true) replace('i','o') replace('img','[IMG]') truncate(5) truncate(2,true,'') indent".split(),
    *"join('-') max min int|string int(default=7) float|int map('upper')|join select('in','img')|list".split(),
    *"reject('equalto','i')|join batch(2)|list slice(2)|list center(9) striptags urlencode wordwrap(3) pprint".split(),
    *"format int|filesizeformat".split(),
]
TESTS = [
    *"== 'img';!= 'INST';in ['tool', 'end', '22'];in 'an img here';not in '404';< 'm';>= '22';is string".split(
        ";"
    ),
    *"is number;is lower;is upper;is sequence;is eq '22';is in ['img'];is iterable;is none;is sameas none".split(
        ";"
    ),
    *"and true;or '[IMG]';~ '!';+ 'g';* 2;== c|trim;== c|int|string;is divisibleby 2;| length > 2".split(";"),
    *"[0] | default('-');[-1:];[:2];[::-1];[1:] == 'mg';[0] == 'i';[9] is defined".split(";"),
]
WHOLES = (
    "{% set n = c|int %}{% if n|string == c %}{% set c = n %}{% endif %}{{ {'content': c}|tojson }}",
    "{% for x in c %}{{ loop.index }}{{ x }}{% if x == 'm' %}{% break %}{% endif %}{% endfor %}",
    "{% for x in c.split('[INST]') %}({{ x }}){% endfor %}",
    "{% if '<s>' in c %}{{ c }}{% else %}no{% endif %}",
    "{% set d = {'img': 'an image', '22': 'twenty-two'} %}{{ d[c] if c in d else d.get(c, '[IMG]') }}",
    "{% set ns = namespace(found=false, all='') %}{% for x in c %}{% if x in 'img' %}{% set ns.found = true %}"
    "{% set ns.all = ns.all + x|upper %}{% endif %}{% endfor %}{{ ns.found }}{{ ns.all }}",
    "{% macro show(x, y='[IMG]') %}{{ y if x == 'img' else x|title }}{% endmacro %}{{ show(c) }}{{ show(c, '<s>') }}",
    "{{ (c|attr('upper'))() }}{{ (c|upper|attr('isalpha'))() }}",
    "{{ {'22': 1, 'img': 2}[c]|default('none') }}{{ [c, 'b', 'a']|sort|join('</s>') }}",
    "{{ messages|selectattr('content', 'equalto', 'img')|list|length }}{{ messages|map(attribute='content')|join|upper }}",
    "{{ messages|groupby('content')|map('first')|join }}",
    "{{ '%s-%s' % (c|upper, '[IMG]') }}{{ '[{}]'.format(c) }}{{ '{0:>8}'.format(c) }}",
    "{{ ('[INST]' ~ c|lower)|trim }}{% filter upper %}{{ c }}x{% endfilter %}",
    "{% if c is string and c|length > 2 and c[0]|lower == 'i' %}{{ c[0]|upper ~ c[1:] }}{% endif %}",
)
TEMPLATES = (
    *(f"{{{{ c.{method} }}}}" for method in METHODS),
    *(f"{{{{ c|{name} }}}}" for name in FILTERS),
    *(f"{{{{ c {test} }}}}" for test in TESTS),
    *(f"{{{{ 'yes' if c {test} else 'no' }}}}" for test in TESTS[:26] if "|" not in test),
    *WHOLES,
)
AROUND = "{{{{ bos_token }}}}[INST]{{% set c = messages[0]['content'] %}}{}[/INST]"


def plain(template: str, messages: list[dict[str, Any]]) -> str | None:
    """What transformers makes of it; None where it fails."""

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = tojson
    try:
        return environment.from_string(template).render(messages=messages, bos_token="<s>")
    except Exception:
        return None


def show(template: str, text: str) -> RenderedPrompt:
    return render(template, normalize(text), controls=CONTROLS, special_tokens={"bos_token": "<s>"})


@pytest.mark.parametrize("body", TEMPLATES)
def test_text_is_what_jinja_makes_of_it(body: str) -> None:
    template = AROUND.format(body)
    wrong = []
    for text in TEXTS:
        want = plain(template, [{"role": "user", "content": text}])
        try:
            got: str | None = str(show(template, text))
        except Exception as error:
            got = None
            if want is not None:
                wrong.append((text, want, repr(error)))
                continue
        if want is not None and got != want:
            wrong.append((text, want, got))
        if want is None and got is not None:
            wrong.append((text, "an error", got))
    assert not wrong


OWN = {  # what plain Jinja makes of CONTROLS in these templates is the template's own; typed ones are not
    "{{ c }}": [],
    "{{ c|upper }}": [],
    "{{ c|replace('img', '[IMG]') }}": ["[IMG]"],
    "{{ c.replace('img', '[IMG]') }}": ["[IMG]"],
    "{{ '[IMG]' if c == 'img' else c }}": ["[IMG]"],
    "{% set t = {'img': '[IMG]'} %}{{ t.get(c, c) }}": ["[IMG]"],
    "{% set t = {'img': '[IMG]'} %}{{ t[c] if c in t else c|upper }}": ["[IMG]"],
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ m('[IMG]') if c == 'img' else m(c) }}": ["[IMG]"],
    "{{ ['', '']|join('[IMG]') if c == 'img' else c }}": ["[IMG]"],
    "{% set ns = namespace(t='') %}{% if c == 'img' %}{% set ns.t = ns.t + '[IMG]' %}{% endif %}{{ ns.t or c }}": [
        "[IMG]"
    ],
    "{{ '%s[IMG]%s' % (c[0], c[1:]) if c == 'img' else c|title }}": ["[IMG]"],
    "{{ '{}[IMG]{:>9}'.format(c[0], c[1:]) if c == 'img' else c|title }}": ["[IMG]"],
    "[{{ c }}]": [],
    "[{{ c|upper }}]": [],
    "[{{ c|lower|upper }}{{ ']' }}": [],
    "{% if c == 'img' %}{{ eos_token or '</s>' }}{% endif %}{{ c|trim|capitalize }}": ["</s>"],
}


@pytest.mark.parametrize("body", OWN)
@pytest.mark.parametrize(
    "text", ["img", "IMG", "[IMG]", " [img] ", "inst", "[/INST]", "</s>", "22", "[IMG] img <s>"]
)
def test_typed_tokens_are_told_from_the_templates_own(body: str, text: str) -> None:
    template = AROUND.format(body)
    prompt = show(template, text)
    assert str(prompt) == plain(template, [{"role": "user", "content": text}])
    written = OWN[body] if text == "img" or ("replace" in body and "img" in text) else []
    assert prompt.controls() == ["<s>", "[INST]", *written, "[/INST]"]


KEYS = {
    "[{{ mood }}]": [],
    "[{{ mood|upper }}]{{ '[IMG]' }}": ["[IMG]"],
    "{% for k in messages[0].more %}[{{ k }}]{{ messages[0].more[k] }}{% endfor %}{{ mood }}": [],
    "{% if mood == 'IMG' %}[IMG]{% endif %}": ["[IMG]"],
}


@pytest.mark.parametrize("body", KEYS)
def test_keys_and_variables_make_no_token_with_their_neighbours(body: str) -> None:
    message = {"role": "user", "content": "x", "more": {"IMG": "a", "s": "INST"}}
    shown = "[INST]" + body + "[/INST]"
    prompt = render(shown, normalize([message]), controls=CONTROLS, variables={"mood": "IMG"})
    assert prompt.controls() == ["[INST]", *KEYS[body], "[/INST]"]
    assert "[IMG]" in str(prompt)
