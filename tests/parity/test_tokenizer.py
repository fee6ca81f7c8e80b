"""FastTokenizer beside transformers 4.57's fast tokenizers, on the same folders: ids, masks, text and templates equal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from tests.tiny import DATA
from vitrail.tokenizer.fast import FastTokenizer

transformers = pytest.importorskip("transformers")

LETTERS = "abcé漢🦜 \n\t.'"
MARKERS = ["[INST]", "[/INST]", "[IMG]", "</s>", "<s>", "<unk>", "[IMG_BREAK]", "<pad>"]
TEXTS = [
    "",
    "hello",
    "  two  spaces ",
    "[INST]a[/INST]",
    "Décrivez. 漢字 🦜",
    "<s>x</s>",
    "a\n\nb",
    "it 's .",
]
texts = st.lists(st.text(st.sampled_from(LETTERS), max_size=8) | st.sampled_from(MARKERS), max_size=8).map(
    "".join
)


def bytelevel(folder: Path) -> None:
    """The golden tokenizer, as transformers 4.57 saves it."""
    shutil.copy(DATA / "pixtral-0" / "tokenizer.json", folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": (DATA / "pixtral-0" / "chat_template.jinja").read_text(),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def with_bos(folder: Path) -> None:
    """The same with a post-processor that begins every sequence with <s>."""
    bytelevel(folder)
    stored = json.loads((folder / "tokenizer.json").read_text())
    stored["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(stored))


def llama(folder: Path, **flags: Any) -> None:
    """A sentencepiece-like tokenizer under Llama's class, which adds bos and eos by its own flags."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    specials = ["<unk>", "<s>", "</s>", *MARKERS[:3]]
    letters = [*sorted(set("▁abcdehlo'.xyz\n")), "lo", "he", "▁a", "▁he"]
    vocabulary = {token: index for index, token in enumerate([*specials, *letters])}
    model = models.BPE(
        vocabulary, [("l", "o"), ("h", "e"), ("▁", "a"), ("▁", "he")], unk_token="<unk>", fuse_unk=True
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace("▁", prepend_scheme="first")
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False},
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "legacy": False,
        "chat_template": (DATA / "pixtral-0" / "chat_template.jinja").read_text(),
        **flags,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


KINDS = {
    "bytelevel": bytelevel,
    "with_bos": with_bos,
    "llama": llama,
    "llama_eos": lambda folder: llama(folder, add_bos_token=False, add_eos_token=True),
}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[FastTokenizer, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    KINDS[request.param](folder)
    return FastTokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)


@given(text=texts, special=st.booleans())
@settings(max_examples=60, deadline=None)
def test_ids_and_text(pair: tuple[FastTokenizer, Any], text: str, special: bool) -> None:
    ours, theirs = pair
    ids = theirs(text, add_special_tokens=special)["input_ids"]
    assert ours(text, add_special_tokens=special)["input_ids"] == ids
    assert ours.encode(text, add_special_tokens=special) == ids
    assert ours.tokenize(text) == theirs.tokenize(text)
    for skip in (False, True):
        for clean in (None, False, True):
            wanted = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
            assert ours.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean) == wanted
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)
    assert ours.convert_tokens_to_string(ours.tokenize(text)) == theirs.convert_tokens_to_string(
        theirs.tokenize(text)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"padding": "longest", "padding_side": "right", "pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 40},
        {"truncation": True, "max_length": 3, "padding": True},
        {"truncation": True, "max_length": 1, "padding": True},
        {
            "padding": True,
            "return_special_tokens_mask": True,
            "return_token_type_ids": True,
            "return_length": True,
        },
        {"padding": True, "return_attention_mask": False},
        {"padding": True, "add_special_tokens": False},
    ],
)
def test_batches(pair: tuple[FastTokenizer, Any], options: dict[str, Any]) -> None:
    ours, theirs = pair
    mine, wanted = ours(TEXTS[1:], **options), theirs(TEXTS[1:], **options)
    assert dict(mine) == dict(wanted)
    tensors = ours(TEXTS[1:], return_tensors="pt", **options)
    assert {name: tensors[name].tolist() for name in wanted} == {name: list(wanted[name]) for name in wanted}


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_side(pair: tuple[FastTokenizer, Any], side: str) -> None:
    for tokenizer in pair:
        tokenizer.truncation_side = side
    ours, theirs = pair
    text = "hello hello hello"
    assert (
        ours(text, truncation=True, max_length=5)["input_ids"]
        == theirs(text, truncation=True, max_length=5)["input_ids"]
    )


def test_pairs_and_words(pair: tuple[FastTokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours("hello", "a b")["input_ids"] == theirs("hello", "a b")["input_ids"]
    words = ["hello", "a", "[INST]"]
    assert (
        ours(words, is_split_into_words=True)["input_ids"]
        == theirs(words, is_split_into_words=True)["input_ids"]
    )


def test_pad(pair: tuple[FastTokenizer, Any]) -> None:
    ours, theirs = pair
    rows = [theirs(text) for text in TEXTS[1:4]]
    assert dict(ours.pad(rows)) == dict(theirs.pad(rows))
    wanted = theirs.pad({"input_ids": [[5, 6], [7]]}, padding="max_length", max_length=4, return_tensors="np")
    mine = ours.pad({"input_ids": [[5, 6], [7]]}, padding="max_length", max_length=4, return_tensors="np")
    assert {name: value.tolist() for name, value in mine.items()} == {
        n: v.tolist() for n, v in wanted.items()
    }


def test_pad_keeps_the_kind(pair: tuple[FastTokenizer, Any]) -> None:
    ours, theirs = pair
    for kind in ("pt", "np"):
        rows = [{"input_ids": theirs(text, return_tensors=kind)["input_ids"][0]} for text in TEXTS[1:4]]
        mine, wanted = ours.pad([dict(row) for row in rows]), theirs.pad(rows)
        assert {n: (type(v), v.tolist()) for n, v in mine.items()} == {
            n: (type(v), v.tolist()) for n, v in wanted.items()
        }


def test_attributes(pair: tuple[FastTokenizer, Any]) -> None:
    ours, theirs = pair
    names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
    for name in [f"{name}_token{suffix}" for name in names for suffix in ("", "_id")]:
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("all_special_tokens", "all_special_ids", "special_tokens_map", "vocab_size", "padding_side"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (len(ours), ours.get_vocab()) == (len(theirs), theirs.get_vocab())
    assert ours.model_max_length == theirs.model_max_length
    assert ours.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()
    assert ours.convert_tokens_to_ids(["[INST]", "nonsense"]) == theirs.convert_tokens_to_ids(
        ["[INST]", "nonsense"]
    )
    assert ours.get_chat_template() == theirs.get_chat_template()


CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "hello"}],
    [
        {"role": "system", "content": "be he"},
        {
            "role": "user",
            "content": [{"type": "text", "content": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": "hello  "},
    ],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "text", "text": " y z"}]}],
]


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("chat", CHATS)
def test_chat_template(pair: tuple[FastTokenizer, Any], chat: list[dict[str, Any]], continued: bool) -> None:
    ours, theirs = pair
    options = {"continue_final_message": continued}
    if continued and chat[-1]["role"] == "user":
        options = {"add_generation_prompt": True}
    assert ours.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)
    text = theirs.apply_chat_template(chat, tokenize=False, **options)
    assert ours.apply_chat_template(chat, tokenize=False, **options) == text
    # Neither adds a second <s> to a rendered prompt by itself; both do when asked to encode one as text.
    assert (
        ours(ours.apply_chat_template(chat, tokenize=False, **options))["input_ids"]
        == theirs(text)["input_ids"]
    )


def test_chat_batch(pair: tuple[FastTokenizer, Any]) -> None:
    ours, theirs = pair
    options: dict[str, Any] = {"padding": True, "return_dict": True, "return_tensors": "pt"}
    mine, wanted = ours.apply_chat_template(CHATS, **options), theirs.apply_chat_template(CHATS, **options)
    assert {name: value.tolist() for name, value in mine.items()} == {
        n: v.tolist() for n, v in wanted.items()
    }


def test_round_trip_through_transformers(pair: tuple[FastTokenizer, Any], tmp_path: Path) -> None:
    """What we save, transformers loads and means the same; what it saves, we load."""
    ours, theirs = pair
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    back = FastTokenizer.from_pretrained(tmp_path / "theirs")
    for text in TEXTS:
        assert again(text)["input_ids"] == theirs(text)["input_ids"] == back(text)["input_ids"]
    for copy in (again, back):
        assert copy.special_tokens_map == theirs.special_tokens_map
        assert copy.padding_side == theirs.padding_side
        assert copy.apply_chat_template(CHATS[1]) == theirs.apply_chat_template(CHATS[1])


def test_added_tokens(tmp_path: Path) -> None:
    bytelevel(tmp_path)
    ours, theirs = (
        FastTokenizer.from_pretrained(tmp_path),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    )
    for tokenizer in (ours, theirs):
        assert tokenizer.add_tokens(["newword", "[INST]"]) == 2
        assert tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]}) == 1
    assert len(ours) == len(theirs)
    assert ours("a newword <extra>")["input_ids"] == theirs("a newword <extra>")["input_ids"]
    assert ours.all_special_tokens == theirs.all_special_tokens
