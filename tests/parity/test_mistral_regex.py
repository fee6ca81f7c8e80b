"""tokenizer.json files with the rule of transformers' older converter: warned of, and repaired to mistral-common's ids."""

from __future__ import annotations

import base64
import json
import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import vitrail
from tests.tiny import DATA
from vitrail.errors import InputError
from vitrail.tokenizer.mistral_regex import TEKKEN, WRONG

mistral_common = pytest.importorskip("mistral_common")
transformers = pytest.importorskip("transformers")

PIECES = (
    *[
        "don",
        "'t",
        "'The",
        "'e",
        " C'EST",
        "HTTPServer",
        "12345",
        " 2048",
        "foo_bar",
        "/usr",
        "\n/",
        "NASA's",
        "URLs",
    ],
    *[" 'twas", "O'Reilly", "\r\n", "   ", "漢字", "ﬁ", "Ünïcode", "ʼn", "́", "🦜", "١٢٣", "don'T", "\t", "ǅ"],
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=6).map("".join)


@cache
def tekken() -> Any:
    """mistral-common's tokenizer of the published file, as far as texts go."""
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    file = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    return file, MistralTokenizer.from_file(str(file)).instruct_tokenizer.tokenizer


def converted(rule: str) -> Tokenizer:
    """The published Tekken vocabulary as a tokenizer.json, whose texts are cut by `rule`."""
    file, reference = tekken()
    content = json.loads(file.read_text("utf-8"))
    start = content["config"]["default_num_special_tokens"]
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}
    used = content["vocab"][: content["config"]["default_vocab_size"] - start]
    spelled = ["".join(letters[b] for b in base64.b64decode(entry["token_bytes"])) for entry in used]
    rank = {word: n for n, word in enumerate(spelled)}
    merges: list[tuple[str, str]] = []
    for word in spelled:
        pairs = [(word[:i], word[i:]) for i in range(1, len(word)) if word[:i] in rank and word[i:] in rank]
        merges += sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]]))
    specials = [reference.id_to_piece(i) for i in range(start)]
    vocabulary = {word: start + n for n, word in enumerate(spelled)} | {n: i for i, n in enumerate(specials)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(rule), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    return backend


SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the real vocabulary and the wrong rule."""
    folder = tmp_path_factory.mktemp("faulty")
    converted(WRONG).save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    config = {"model_type": "mistral3", "transformers_version": "4.50.0"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def small(folder: Path, rule: str, first: str = "<unk>") -> Path:
    """The golden checkpoint with a rule of its own, which needs no large vocabulary."""
    shutil.copytree(DATA / "mistral3-0", folder)
    stored = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    split = {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
    level = {**stored["pre_tokenizer"], "use_regex": False}
    stored["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    text = json.dumps(stored).replace('"[INST]"', '"[inst]"') if first != "<unk>" else json.dumps(stored)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


def said(load: Any, *args: Any, **options: Any) -> tuple[Any, list[str]]:
    """What a call returns, and its warnings about the rule."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = load(*args, **options)
    return made, [str(one.message) for one in caught if "regular expression" in str(one.message)]


@pytest.mark.slow
def test_repaired_ids_are_mistral_commons_and_transformers(faulty: Path, tmp_path: Path) -> None:
    """The vocabulary is the published one, so both oracles say what each text's ids are."""
    _, reference = tekken()
    wrong, told = said(vitrail.AutoTokenizer.from_pretrained, faulty)
    assert len(told) == 1 and "fix_mistral_regex=True" in told[0]
    right, told = said(vitrail.AutoTokenizer.from_pretrained, faulty, fix_mistral_regex=True)
    assert told == [] and right.fix_mistral_regex is True and wrong.fix_mistral_regex is False
    theirs = transformers.AutoTokenizer.from_pretrained(faulty, fix_mistral_regex=True)
    theirs_wrong = transformers.AutoTokenizer.from_pretrained(faulty, fix_mistral_regex=False)
    differ = "x'The y'e C'EST don'T \n/"
    assert wrong(differ)["input_ids"] != right(differ)["input_ids"]

    @settings(max_examples=300, deadline=None)
    @given(texts)
    def compare(text: str) -> None:
        assume(
            not any(token in text for token in right.all_special_tokens)
        )  # ids to transformers, text to mistral-common
        ids = right(text, add_special_tokens=False)["input_ids"]
        assert ids == reference.encode(text, bos=False, eos=False)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert wrong(text)["input_ids"] == theirs_wrong(text, add_special_tokens=False)["input_ids"]

    compare()
    right.save_pretrained(tmp_path)
    saved, told = said(vitrail.AutoTokenizer.from_pretrained, tmp_path)
    assert told == []
    text = "".join(PIECES)
    assert saved(text)["input_ids"] == right(text)["input_ids"]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == right(text)["input_ids"]


WAYS: dict[str, Any] = {
    "AutoTokenizer": vitrail.AutoTokenizer.from_pretrained,
    "AutoProcessor": lambda *a, **o: vitrail.AutoProcessor.from_pretrained(*a, **o).tokenizer,
    "PixtralProcessor": lambda *a, **o: vitrail.PixtralProcessor.from_pretrained(*a, **o).tokenizer,
    "pipeline": lambda *a, **o: vitrail.pipeline("image-text-to-text", *a, **o).tokenizer,
    "load": lambda *a, **o: vitrail.load(*a, **o).processor.tokenizer,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_warns_once_and_takes_the_flag(way: str, tmp_path: Path) -> None:
    folder = small(tmp_path / "m", WRONG)
    tokenizer, told = said(WAYS[way], folder)
    assert len(told) == 1 and str(folder / "tokenizer.json") in told[0]
    text = "a don'T a 123 b"
    rule = str(tokenizer.backend_tokenizer.pre_tokenizer)
    fixed, told = said(WAYS[way], folder, fix_mistral_regex=True)
    assert told == []
    assert rule != str(fixed.backend_tokenizer.pre_tokenizer)
    _, told = said(WAYS[way], folder, fix_mistral_regex=False)
    assert told == []
    right = vitrail.AutoTokenizer.from_pretrained(small(tmp_path / "right", TEKKEN))
    assert fixed(text)["input_ids"] == right(text)["input_ids"]
    assert str(fixed.backend_tokenizer.pre_tokenizer) == str(right.backend_tokenizer.pre_tokenizer)
    with pytest.raises(InputError, match="fix_mistral_regex is True or False"):
        WAYS[way](folder, fix_mistral_regex="yes")


def test_flag_in_the_file_repairs_as_in_transformers(tmp_path: Path) -> None:
    folder = small(tmp_path / "m", WRONG)
    stored = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(stored | {"fix_mistral_regex": True}))
    tokenizer, told = said(vitrail.AutoTokenizer.from_pretrained, folder)
    assert told == [] and r"\p{Lu}" in str(tokenizer.backend_tokenizer.pre_tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(stored | {"fix_mistral_regex": False}))
    assert len(said(vitrail.AutoTokenizer.from_pretrained, folder)[1]) == 1


@pytest.mark.parametrize(
    ("rule", "first"),
    [(TEKKEN, "<unk>"), (WRONG, "llama"), (r"\p{N}{1,3}|.", "<unk>")],
    ids=["Mistral's own", "another family's vocabulary", "a rule that nobody called wrong"],
)
def test_right_file_is_never_warned_of(rule: str, first: str, tmp_path: Path) -> None:
    """Llama 3 cuts by the same rule as the faulty files, rightly: its vocabulary is another one."""
    folder = small(tmp_path / "m", rule, first)
    plain, told = said(vitrail.AutoTokenizer.from_pretrained, folder)
    assert told == []
    for name in ("pixtral-0", "mistral3-0", "ministral3-0"):
        assert said(vitrail.AutoTokenizer.from_pretrained, DATA / name)[1] == []
    if first != "<unk>":  # nor is it "repaired"
        given = vitrail.AutoTokenizer.from_pretrained(folder, fix_mistral_regex=True)
        assert str(given.backend_tokenizer.pre_tokenizer) == str(plain.backend_tokenizer.pre_tokenizer)


@pytest.mark.slow
def test_published_tekken_needs_no_flag_and_takes_it(tmp_path: Path) -> None:
    shutil.copy(tekken()[0], tmp_path / "tekken.json")
    tokenizer, told = said(vitrail.AutoTokenizer.from_pretrained, tmp_path, fix_mistral_regex=True)
    assert told == []
    assert tokenizer.encode("don'T 12", add_special_tokens=False) == tekken()[1].encode(
        "don'T 12", bos=False, eos=False
    )
