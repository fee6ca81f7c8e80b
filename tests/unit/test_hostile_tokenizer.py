"""tokenizer.json files that would abort, panic or run away: each is one VitrailError, or works, in bounded time."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from tests.tiny import DATA
from vitrail.errors import CheckpointError, VitrailError
from vitrail.tokenizer.fast import FastTokenizer
from vitrail.tokenizer.mistral_regex import TEKKEN, WRONG
from vitrail.tokenizer.patterns import check_pattern

GOOD: dict[str, Any] = json.loads((DATA / "mistral3-0" / "tokenizer.json").read_text("utf-8"))
CONFIG: dict[str, Any] = json.loads((DATA / "mistral3-0" / "tokenizer_config.json").read_text("utf-8"))
TEXT = "hello aaaaaaaaaaaaaaaaaaaaaaaaaaaaaab [INST] é 漢字 " + "x" * 500 + " " * 100
PUBLISHED = {
    "Tekken": TEKKEN,
    "Llama 3": WRONG,
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Qwen 2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re)?|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "DeepSeek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|[一-龥]+|\s+",
    "a space": " ",
}
ENDLESS = [
    r"(a+)+$|.",
    r"(a|a)*c|.",
    r"(a|aa)+b",
    r"a*a*a*b",
    r"a+?b*?c",
    r"(x+x+)+y",
    r"(?:(?:a*)b?)*c",
    r"(.*)*",
    "a**b",
    r"(?:a?){30}b",
    "a?" * 30 + "a" * 30,
    "(a|a)" * 30 + "b",
    "a{1,100}" * 3 + "b",
    r"((((a{1000}){1000}){1000}){1000}){1000}|.",
    r"(){1000}".join(["("] * 3) + "){1000}" * 3,
    r"(\b)*",
    r"(?<=a+)b+c*d",
    r"(?<x>a\g<x>?b|a)+|.",
    r"(a+)\1",
    r"(?~ab)",
    r"(?x) ( a + ) +",
    "a" * 5000,
    "(" * 60 + ")" * 60,
]


def folder_of(place: Path, tokenizer: Any, config: Any = CONFIG) -> Path:
    place.mkdir(exist_ok=True)
    for name, value in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (place / name).write_text(json.dumps(value), encoding="utf-8")
    return place


def use(folder: Path) -> None:
    """What a user does with a tokenizer, in every way in which a text reaches the library."""
    tokenizer = FastTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT)["input_ids"]
    tokenizer.decode(ids)
    tokenizer(["a", "b"], padding=tokenizer.pad_token is not None, truncation=True, max_length=3)
    tokenizer.encoder.encode(TEXT)
    tokenizer.convert_tokens_to_string(tokenizer.tokenize("a b"))
    tokenizer.apply_chat_template(
        [{"role": "user", "content": "[INST] a"}], chat_template="{{ messages[0].content }}"
    )


def split(rule: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}


def template(single: list[Any], tokens: dict[str, Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}


A = {"Sequence": {"id": "A", "type_id": 0}}
END = {"SpecialToken": {"id": "</s>", "type_id": 0}}
TOKEN = GOOD["added_tokens"][0]
DOUBLED = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
# What is put at the top, or into the model, and what the error says; each kills, hangs or misleads the library alone.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a rule without end": ({"pre_tokenizer": split("(a+)+$|.")}, "for ever"),
    "a rule without end in the decoder": (
        {"decoder": {"type": "Replace", "pattern": {"Regex": "(a|a)*c"}, "content": ""}},
        "for ever",
    ),
    "a text doubled sixty times": (
        {"normalizer": {"type": "Sequence", "normalizers": [DOUBLED] * 60}},
        "64 times as long",
    ),
    "bytes of bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL] * 40}},
        "64 times as long",
    ),
    "a decoder that doubles": (
        {"decoder": {"type": "Sequence", "decoders": [DOUBLED] * 60}},
        "64 times as long",
    ),
    "thousands of parts": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 5000}},
        "5000 parts",
    ),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "a" * 1000}}, "64 times as long"),
    "an empty text replaced": (
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "aa"}},
        "empty text",
    ),
    "pieces of no length": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "no length"),
    "stripping for ever": (
        {"decoder": {"type": "Strip", "content": "a", "start": 0, "stop": 2**60}},
        "strips",
    ),
    "a text twice": ({"post_processor": template([A, A], {})}, "no order"),
    "an unknown end": ({"post_processor": template([A, END], {})}, "not among its special_tokens"),
    "an end with other texts": (
        {"post_processor": template([A, END], {"</s>": {"id": "</s>", "ids": [1, 2], "tokens": ["a"]}})},
        "2 ids",
    ),
    "an end outside": (
        {"post_processor": {"type": "BertProcessing", "sep": ["x", 9], "cls": ["y", 2**32 - 1]}},
        "the vocabulary does not have",
    ),
    "a charsmap": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),
    "a part of the future": ({"normalizer": {"type": "Vitrail"}}, "no tokenizer"),
    "an id that is another's": (
        {"added_tokens": [*GOOD["added_tokens"], {**TOKEN, "id": 5, "content": "qq"}]},
        "gives 'qq' the id 5",
    ),
    "an id of four thousand millions": (
        {"added_tokens": [*GOOD["added_tokens"], {**TOKEN, "id": 2**32 - 1, "content": "qq"}]},
        "4294967295",
    ),
    "no model": ({"model": None}, "no tokenizer"),
    "an id below nothing": ({"model": {**GOOD["model"], "vocab": {"a": -1}, "merges": []}}, "no tokenizer"),
    "two tokens of one id": (
        {"added_tokens": [], "model": {**GOOD["model"], "vocab": {"a": 1, "b": 1}, "merges": []}},
        "one id",
    ),
    "a huge id": (
        {"added_tokens": [], "model": {**GOOD["model"], "vocab": {"a": 2**32 - 1}, "merges": []}},
        "4,294,967,295",
    ),
    "a huge token": (
        {"added_tokens": [], "model": {**GOOD["model"], "vocab": {"a" * 20_000: 0}, "merges": []}},
        "20,000 letters",
    ),
    "merges of nothing": ({"model": {**GOOD["model"], "merges": [["a", "zzzz"]]}}, "no tokenizer"),
    "a prefix longer than tokens": (
        {"model": {**GOOD["model"], "continuing_subword_prefix": "漢字漢字漢字"}},
        "no tokenizer",
    ),
    "words of any length": (
        {
            "added_tokens": [],
            "model": {
                "type": "WordPiece",
                "unk_token": "a",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 2**60,
                "vocab": {"a": 0},
            },
        },
        "max_input_chars_per_word",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_file_that_the_library_would_die_of_is_refused(name: str, tmp_path: Path) -> None:
    changes, said = CASES[name]
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=said):
        use(folder_of(tmp_path / "m", {**GOOD, **changes}))
    assert time.monotonic() - began < 5


def test_nesting_and_numbers_beyond_reason_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", GOOD)
    text = json.dumps(GOOD)
    for hostile in (
        "[" * 100_000,
        '{"normalizer":' * 500 + "null" + "}" * 500,
        text.replace('"version"', '"x":' + "9" * 10_000 + ',"version"').replace('"id": 1,', '"id": 1e400,'),
        text[:-200],
        "",
    ):
        (folder / "tokenizer.json").write_text(hostile, encoding="utf-8")
        with pytest.raises(CheckpointError):
            use(folder)


def test_lengths_in_the_file_change_nothing(tmp_path: Path) -> None:
    """Padding and truncation are those of the call, as in transformers."""
    pad = {"direction": "Right", "pad_to_multiple_of": 2**40, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 10}
    hostile = {**GOOD, "padding": {"strategy": {"Fixed": 2**40}, **pad}, "truncation": cut}
    ours = FastTokenizer.from_pretrained(folder_of(tmp_path / "m", hostile))
    assert ours(TEXT) == FastTokenizer.from_pretrained(DATA / "mistral3-0")(TEXT)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rules_are_taken(name: str) -> None:
    check_pattern(PUBLISHED[name], "tokenizer.json")


@pytest.mark.parametrize("rule", ENDLESS, ids=range(len(ENDLESS)))
def test_rules_that_could_run_for_ever_are_refused(rule: str) -> None:
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*regular expression"):
        check_pattern(rule, "tokenizer.json")
    assert time.monotonic() - began < 1


@given(st.text(st.sampled_from(r"ab()|*+?{}12,[]^$\.:=!<>"), max_size=40))
@example("(" * 49 + "a|b" + ")?" * 49)
@settings(deadline=None)
def test_any_rule_is_judged_at_once(rule: str) -> None:
    began = time.monotonic()
    with suppress(CheckpointError):
        check_pattern(rule, "f")
    assert time.monotonic() - began < 1


def test_tekken_file_with_such_a_rule_is_refused(tmp_path: Path) -> None:
    """mistral-common would hand it to tiktoken."""
    mistral_common = pytest.importorskip("mistral_common")
    from vitrail.tokenizer.mistral import MistralCommonTokenizer

    stored = json.loads(
        (Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text("utf-8")
    )
    stored["config"]["pattern"] = "(a+)+$|."
    stored["config"]["default_vocab_size"] = 1256
    stored["vocab"] = stored["vocab"][:256]
    (tmp_path / "tekken.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(CheckpointError, match="for ever"):
        MistralCommonTokenizer(tmp_path / "tekken.json")


# --- mutations --------------------------------------------------------------------------------------------

N = 50  # examples of each; thousands were tried
VALUES: list[Any] = [
    *[
        None,
        True,
        -1,
        0,
        1,
        2**31,
        2**32 - 1,
        2**63,
        1e300,
        -0.5,
        "",
        "a",
        "\ud800",
        "a" * 3000,
        "(",
        "(a+)+b",
        "漢",
    ],
    *[
        [],
        {},
        [[]],
        [None],
        {"type": "Sequence"},
        {"type": "ByteLevel"},
        {"Regex": "(a|a)*b"},
        {"String": ""},
        [1, 2],
    ],
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value; of long lists and objects the first and the last."""
    keys = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for key in keys if len(keys) < 20 else [*keys[:3], keys[-1]]:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def mutated(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    result = copy.deepcopy(value)
    holder = result
    for key in path[:-1]:
        holder = holder[key]
    change(holder, path[-1])
    return result


RICH = {
    **GOOD,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "_"}, DOUBLED, {"type": "NFC"}],
    },
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(TEKKEN), LEVEL]},
    "post_processor": template([END, A], {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}),
    "decoder": {
        "type": "Sequence",
        "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}, LEVEL],
    },
}
PLACES = list(places(RICH))
CONFIG_PLACES = list(places(CONFIG))


def removed(holder: Any, key: Any) -> None:
    del holder[key]


def changes(value: Any) -> Callable[[Any, Any], None]:
    def change(holder: Any, key: Any) -> None:
        holder[key] = value

    return change


def survives(folder: Path) -> None:
    began = time.monotonic()
    with suppress(VitrailError):
        use(folder)
    assert time.monotonic() - began < 5


@settings(max_examples=N, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), st.sampled_from(VALUES) | st.just(removed))
def test_mutated_file_is_one_error_or_works(tmp_path: Path, path: tuple[Any, ...], value: Any) -> None:
    hostile = mutated(RICH, path, value if value is removed else changes(value))
    survives(folder_of(tmp_path / "m", hostile))


@settings(max_examples=N, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([*CONFIG_PLACES, ("model_max_length",), ("added_tokens_decoder",), ("add_bos_token",)]),
    st.sampled_from([*VALUES, float("inf"), float("nan"), {"5": "x"}, {"x": {}}, {"content": 3}]),
    st.booleans(),
)
def test_mutated_settings_are_one_error_or_work(tmp_path: Path, path: Any, value: Any, llama: bool) -> None:
    settled = {**CONFIG, "tokenizer_class": "LlamaTokenizerFast"} if llama else CONFIG
    survives(folder_of(tmp_path / "m", GOOD, mutated(settled, path, changes(value))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["a rule without end", "a text doubled sixty times", "bytes of bytes of bytes", "a text twice"]
)
def test_dangerous_file_leaves_the_process_alive(name: str, tmp_path: Path) -> None:
    """In a process of its own, with limits: the library alone would take all memory or all time."""
    resource = pytest.importorskip("resource")
    folder = folder_of(tmp_path / "m", {**GOOD, **CASES[name][0]})
    program = (
        "import sys, vitrail\n"
        "try:\n    t = vitrail.AutoTokenizer.from_pretrained(sys.argv[1]); t('a' * 2000)\n"
        "except vitrail.VitrailError as error:\n    print('refused')\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
