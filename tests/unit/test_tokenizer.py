"""FastTokenizer alone: folders of every layout, faults, and control tokens that users type."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer as Backend, models, normalizers, pre_tokenizers

from tests.tiny import DATA
from vitrail.errors import CheckpointError, InputError, PromptError, UnsupportedError, VitrailError
from vitrail.tokenizer import vocabulary
from vitrail.tokenizer.base import BaseTokenizer
from vitrail.tokenizer.fast import FastTokenizer
from vitrail.tokenizer.load import load_tokenizer

FOLDER = DATA / "pixtral-0"
TEMPLATE = "{{ bos_token }}[INST]{{ messages[0]['content'] }}[/INST]"


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    return FastTokenizer.from_pretrained(FOLDER)


def copy(tmp_path: Path, **changes: Any) -> Path:
    """The golden tokenizer in a folder of its own; `changes` overwrite its tokenizer_config.json."""
    shutil.copy(FOLDER / "tokenizer.json", tmp_path)
    config = {**json.loads((FOLDER / "tokenizer_config.json").read_text()), **changes}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_protocol(tokenizer: FastTokenizer) -> None:
    assert isinstance(tokenizer, BaseTokenizer)
    assert isinstance(load_tokenizer(FOLDER), FastTokenizer)


def test_layout_of_5x(tokenizer: FastTokenizer) -> None:
    """`TokenizersBackend` in tokenizer_config.json, the template in a file of its own."""
    assert tokenizer.init_kwargs["tokenizer_class"] == "TokenizersBackend"
    assert tokenizer.padding_side == "left"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 11)
    assert tokenizer.chat_template == (FOLDER / "chat_template.jinja").read_text()
    assert tokenizer("hi", return_tensors="pt")["input_ids"].shape == (1, 2)


def test_older_layouts(tmp_path: Path) -> None:
    folder = copy(
        tmp_path,
        bos_token=None,
        chat_template=[{"name": "default", "template": "a"}, {"name": "b", "template": "c"}],
    )
    (folder / "special_tokens_map.json").write_text(
        '{"bos_token": {"content": "<s>"}, "additional_special_tokens": ["[IMG]"]}'
    )
    tokenizer = FastTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token == "<s>"
    assert tokenizer.additional_special_tokens_ids == [10]
    assert tokenizer.chat_template == {"default": "a", "b": "c"}
    assert tokenizer.apply_chat_template("hi", tokenize=False) == "a"
    assert tokenizer.apply_chat_template("hi", tokenize=False, chat_template="b") == "c"
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert FastTokenizer.from_pretrained(folder).chat_template == "from json"
    (folder / "chat_template.jinja").write_text("from jinja")
    assert FastTokenizer.from_pretrained(folder).chat_template == "from jinja"


def test_named_templates_are_saved(tmp_path: Path) -> None:
    tokenizer = FastTokenizer.from_pretrained(
        FOLDER, chat_template={"default": "a", "tool_use": "{{ tools }}"}
    )
    tokenizer.save_pretrained(tmp_path)
    again = FastTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == {"default": "a", "tool_use": "{{ tools }}"}
    assert again.get_chat_template(tools=[{}]) == "{{ tools }}"


def test_save_load_save(tokenizer: FastTokenizer, tmp_path: Path) -> None:
    first = tokenizer.save_pretrained(tmp_path / "a")
    FastTokenizer.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert sorted(Path(file).name for file in first) == sorted(
        file.name for file in (tmp_path / "b").iterdir()
    )
    for file in (tmp_path / "b").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes()


def test_overrides_and_settings(tmp_path: Path) -> None:
    tokenizer = FastTokenizer.from_pretrained(
        FOLDER, padding_side="right", pad_token="</s>", model_max_length=5
    )
    batch = tokenizer(["a", "abcd efgh"], padding=True, truncation=True, return_tensors="np")
    assert batch["input_ids"].shape == (2, 5)
    assert batch["input_ids"][0].tolist()[1:] == [2, 2, 2, 2]
    tokenizer.pad_token_id = 0
    assert tokenizer.pad_token == "<unk>"
    tokenizer.pad_token = None
    with pytest.raises(InputError, match="set tokenizer"):
        tokenizer(["a", "b"], padding=True)


def test_default_template_where_there_is_none(tmp_path: Path) -> None:
    tokenizer = FastTokenizer.from_pretrained(copy(tmp_path))
    assert tokenizer.chat_template is None
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " a "}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False)
    assert prompt == "<s>[SYSTEM_PROMPT]s[/SYSTEM_PROMPT][INST][IMG] a [/INST]b</s>[INST]c[/INST]"
    with pytest.raises(PromptError, match="knows no tools"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
    backend = Backend(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(PromptError, match="no chat template"):
        FastTokenizer(backend).apply_chat_template("a")


def test_decode_forms(tokenizer: FastTokenizer) -> None:
    ids = tokenizer("héllo 漢")["input_ids"]
    assert tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(ids) == "héllo 漢"
    assert tokenizer.decode(ids[0]) == "h"
    assert tokenizer.batch_decode(torch.tensor([ids, ids])) == ["héllo 漢"] * 2
    assert tokenizer.batch_decode([torch.tensor(ids), ids]) == ["héllo 漢"] * 2
    assert tokenizer.batch_decode(ids[:2]) == [tokenizer.decode([i]) for i in ids[:2]]
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([500]) == ""  # a model's vocabulary may be larger than its tokenizer's


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t.decode([1, -100]), "id -100 at position 1 is negative"),
        (lambda t: t.decode([[1]]), "use batch_decode"),
        (lambda t: t.decode(["a"]), "expected ids"),
        (lambda t: t.decode([2**40]), r"below 2\*\*32"),
        (lambda t: t.decode([1], colour=1), "colour"),
        (lambda t: t("a", colour=1), "unknown arguments: colour"),
        (lambda t: t(7), "expected a text or a list of texts, got int"),
        (lambda t: t([7]), "expected a text or a list"),
        (lambda t: t("a\ud800"), "valid Unicode"),
        (lambda t: t(["a", "bc"], return_tensors="pt"), "padding=True"),
        (lambda t: t("a", padding="wide"), "padding='wide'"),
        (lambda t: t("a", padding=True, padding_side="top"), "'left' or 'right'"),
        (lambda t: t("a", truncation=True, max_length=0), "max_length"),
        (lambda t: t("a", stride=3), "stride"),
        (lambda t: t(["a"], ["b", "c"]), "text_pair"),
        (lambda t: t.pad([1, 2]), "pad expects"),
        (lambda t: t.add_special_tokens({"colour": "a"}), "colour"),
        (lambda t: t.apply_chat_template("a", colour=1), "colour"),
        (lambda t: t.apply_chat_template("a", tokenize=False, return_dict=True), "return_dict"),
        (
            lambda t: t.apply_chat_template("a", return_assistant_tokens_mask=True),
            "return_assistant_tokens_mask",
        ),
        (lambda t: t.apply_chat_template("a", tools="f"), "tools: expected a list"),
        (lambda t: t.save_pretrained("/dev/null/x"), "cannot be made"),
    ],
)
def test_faults_are_named(tokenizer: FastTokenizer, call: Any, said: str) -> None:
    with pytest.raises(VitrailError, match=said):
        call(tokenizer)


def test_max_length_alone_truncates_and_says_so(tokenizer: FastTokenizer) -> None:
    with pytest.warns(UserWarning, match="truncation=True"):
        assert len(tokenizer("a b c d", max_length=2)["input_ids"]) == 2
    with pytest.raises(UnsupportedError, match="pairs"):
        tokenizer("a", "b", truncation=True, max_length=2)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", "{", "no tokenizer that"),
        ("tokenizer.json", "[]", "no tokenizer that"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token must be a text"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": "a"}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"chat_template": 3}', "'chat_template' must be"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "model_max_length must be int or float"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"7": {"content": "new"}}}', "'new' the id 7"),
        ("chat_template.jinja", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_damaged_folders(tmp_path: Path, file: str, content: str | bytes, said: str) -> None:
    folder = copy(tmp_path)
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=said):
        FastTokenizer.from_pretrained(folder)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.json cannot be read"):
        FastTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither tokenizer.json, tekken.json nor"):
        load_tokenizer(tmp_path)


PIECES = [
    "[INST]",
    "[/INST]",
    "[IMG]",
    "</s>",
    "<s>",
    "<pad>",
    "[IMG_BREAK]",
    "a",
    " ",
    "hello",
    "é",
    "\n",
    "[",
]


@given(text=st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
@settings(max_examples=150, deadline=None)
def test_typed_controls_stay_text(tokenizer: FastTokenizer, text: str) -> None:
    """Only the template's four control ids; what the user typed decodes to what the user typed."""
    ids = tokenizer.apply_chat_template(text)
    assert [i for i in ids if i < 20] == [1, 3, 4]
    assert ids[:2] == [1, 3]
    assert ids[-1] == 4
    assert tokenizer.decode(ids[2:-1]) == text
    # The rendered prompt remembers who wrote what, as long as it is the prompt itself.
    prompt = tokenizer.apply_chat_template(text, tokenize=False)
    assert tokenizer(prompt)["input_ids"] == ids
    assert tokenizer([prompt, "[INST]"])["input_ids"] == [ids, [3]]


def test_a_prompt_of_ones_own_is_read_with_its_markers(tokenizer: FastTokenizer) -> None:
    assert tokenizer("<s>[INST]a[/INST]")["input_ids"] == [1, 3, 84, 4]


def test_alias_characters_may_be_typed(tokenizer: FastTokenizer) -> None:
    text = "[INST] \ue0003\ue000 \ue0013\ue001"
    ids = tokenizer.apply_chat_template(text)
    assert [i for i in ids if i < 20] == [1, 3, 4]
    assert tokenizer.decode(ids[2:-1]) == text


def whole_words() -> FastTokenizer:
    """A model that knows control tokens as words of its own."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "[INST]", "[/INST]", "hi", *"[]/INST"])}
    backend = Backend(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<unk>", "<s>", "[INST]", "[/INST]"])
    return FastTokenizer(backend, TEMPLATE, bos_token="<s>", unk_token="<unk>")


def test_models_that_know_controls_as_words() -> None:
    tokenizer = whole_words()
    ids = tokenizer.apply_chat_template("hi [INST] hi")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "[INST]", "hi", *"[INST]", "hi", "[/INST]"]


def test_normalizers_that_make_controls() -> None:
    """A lower-casing tokenizer whose controls are matched after normalising."""
    from tokenizers import AddedToken

    backend = Backend(
        models.BPE(
            {c: i for i, c in enumerate(["<unk>", "<s>", "[i]", "h", "i", "[", "]", "x"])},
            [],
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens([AddedToken(token, normalized=True) for token in ("<s>", "[i]")])
    tokenizer = FastTokenizer(
        backend, "<s>[i]{{ messages[0]['content'] }}", bos_token="<s>", unk_token="<unk>"
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer.apply_chat_template("h[I]")) == [
        "<s>",
        "[i]",
        "h",
        "[",
        "i",
        "]",
    ]


def test_prefix_of_sentencepiece_is_the_same() -> None:
    """Around typed controls, the dummy prefix stands exactly where it stands without them."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "[INST]", "[/INST]", *"▁hi[]/INST"])}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(["<unk>", "<s>", "[INST]", "[/INST]"])
    tokenizer = FastTokenizer(backend, TEMPLATE, bos_token="<s>", unk_token="<unk>")
    for typed in ("hi hi", "hi [INST]hi"):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer.apply_chat_template(typed))
        assert tokens == ["<s>", "[INST]", *("▁" + typed.replace(" ", "▁")), "[/INST]"]


def test_truncation_keeps_what_the_post_processor_adds() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = whole_words()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    assert tokenizer("hi hi hi", truncation=True, max_length=2)["input_ids"] == [1, 4]
    tokenizer.truncation_side = "left"
    assert tokenizer("[INST] hi", truncation=True, max_length=2)["input_ids"] == [1, 4]


def test_tokens_are_added_beside_other_threads_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_WAIT", 0.05)
    tokenizer = FastTokenizer.from_pretrained(copy(tmp_path))
    size, ended, faults, refused = len(tokenizer), threading.Event(), [], 0

    def encode() -> None:
        try:
            while not ended.is_set():
                tokenizer("hello there " * 200)
        except Exception as error:
            faults.append(error)

    worker = threading.Thread(target=encode)
    worker.start()
    for number in range(20):
        try:
            tokenizer.add_tokens([f"<new{number}>"])
        except InputError:
            refused += 1
    ended.set()
    worker.join()
    assert (faults, len(tokenizer)) == ([], size + 20 - refused)


def test_tokenizer_that_is_never_free_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_WAIT", 0.01)

    def never(tokens: Any) -> int:
        raise RuntimeError("Already borrowed")

    with pytest.raises(InputError, match="in use by other threads"):
        vocabulary._when_free(never, [])
