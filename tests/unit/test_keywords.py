"""Keywords that nothing reads are refused by name, secrets are written nowhere, and subfolder= reads the right folder."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

import vitrail
from tests.tiny import DATA
from vitrail.files.hub_options import HubOptions
from vitrail.files.keywords import is_secret, without_secrets
from vitrail.tokenizer.fast import FastTokenizer

FOLDER = DATA / "mistral3-0"
SECRET = "hf_thesecretthatnobodymaysee"
LOADERS: dict[str, Callable[..., Any]] = {
    "AutoConfig": vitrail.AutoConfig.from_pretrained,
    "AutoTokenizer": vitrail.AutoTokenizer.from_pretrained,
    "AutoProcessor": vitrail.AutoProcessor.from_pretrained,
    "AutoImageProcessor": vitrail.AutoImageProcessor.from_pretrained,
    "AutoModelForImageTextToText": vitrail.AutoModelForImageTextToText.from_pretrained,
    "Mistral3Config": vitrail.Mistral3Config.from_pretrained,
    "PixtralProcessor": vitrail.PixtralProcessor.from_pretrained,
    "PixtralImageProcessor": vitrail.PixtralImageProcessor.from_pretrained,
    "GenerationConfig": vitrail.GenerationConfig.from_pretrained,
    "FastTokenizer": FastTokenizer.from_pretrained,
    "Mistral3ForConditionalGeneration": vitrail.Mistral3ForConditionalGeneration.from_pretrained,
    "pipeline": lambda model, **options: vitrail.pipeline("image-text-to-text", model, **options),
    "load": vitrail.load,
}
# The same without what loads weights, for tests of many words.
SMALL = {
    name: load for name, load in LOADERS.items() if name not in ("pipeline", "load") and "For" not in name
}
ALL = pytest.mark.parametrize("name", LOADERS)


@ALL
@pytest.mark.parametrize("word", ["colour", "gguf_file", "padding_sid", "_my_private", "api_key"])
def test_unknown_keyword_is_refused_by_name_and_its_value_is_not_shown(name: str, word: str) -> None:
    with pytest.raises(vitrail.VitrailError, match=word) as caught:
        LOADERS[name](FOLDER, **{word: SECRET})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("AutoTokenizer", {"padding_sid": "left"}, "did you mean padding_side"),
        ("AutoTokenizer", {"add_prefix_space": True}, r"tokenizer\.json itself"),
        ("AutoTokenizer", {"use_fast": False}, "one kind of tokenizer"),
        ("AutoTokenizer", {"max_length": 5}, "model_max_length"),
        ("AutoProcessor", {"padding_sid": "left"}, "did you mean padding_side"),
        ("AutoProcessor", {"do_resize": False}, "AutoImageProcessor"),
        ("AutoConfig", {"spatial_merge": 1}, "did you mean spatial_merge_size"),
        ("AutoConfig", {"hiden_size": 1}, "give text_config={'hidden_size'"),
        ("AutoConfig", {"text_config": {"hiden_size": 1}}, "text_config does not know .* hidden_size"),
        ("GenerationConfig", {"max_new_token": 1}, "max_new_tokens"),
        ("AutoModelForImageTextToText", {"device_mapp": "cpu"}, "did you mean device_map"),
        ("AutoModelForImageTextToText", {"gguf_file": "x"}, "safetensors"),
        ("AutoConfig", {"proxies": {"http": "x"}}, "HTTPS_PROXY"),
        ("AutoConfig", {"mirror": "x"}, "HF_ENDPOINT"),
    ],
)
def test_refusal_names_what_may_have_been_meant(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(vitrail.VitrailError, match=said):
        LOADERS[name](FOLDER, **given)


def test_slip_in_a_configuration_is_refused_and_an_own_key_is_kept() -> None:
    for kind, slip in ((vitrail.MistralConfig, "hiden_size"), (vitrail.LlavaConfig, "text_confg")):
        with pytest.raises(vitrail.ConfigError, match="did you mean"):
            kind(**{slip: 1})
        assert kind(my_own_note={"deep": [1]}).to_dict()["my_own_note"] == {"deep": [1]}
        assert kind.from_dict({slip: 1}).to_dict()[slip] == 1  # what a file says is kept, whatever it is
    config, unused = vitrail.AutoConfig.from_pretrained(FOLDER, colour=1, return_unused_kwargs=True)
    assert unused == {"colour": 1}
    assert config == vitrail.AutoConfig.from_pretrained(FOLDER)


@ALL
@pytest.mark.filterwarnings("ignore:use_auth_token:FutureWarning")
@pytest.mark.parametrize("word", ["token", "use_auth_token"])
def test_token_is_taken_and_saved_nowhere(name: str, word: str, tmp_path: Path) -> None:
    if name == "load" and word == "use_auth_token":
        pytest.skip("the same path as the Auto classes, which load calls")
    made = LOADERS[name](FOLDER, **{word: SECRET})
    parts = [getattr(made, part) for part in ("model", "processor") if name in ("pipeline", "load")] or [made]
    for part in parts:
        assert SECRET not in repr(part) + repr(vars(part))
        part.save_pretrained(tmp_path)
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert written and all(SECRET.encode() not in file.read_bytes() for file in written)


def test_both_names_of_the_token_at_once_are_refused() -> None:
    for name, load in SMALL.items():
        with pytest.raises(vitrail.InputError, match="use_auth_token") as caught:
            load(FOLDER, token=SECRET, use_auth_token=SECRET)
        assert SECRET not in str(caught.value), name
    assert SECRET not in repr(HubOptions(token=SECRET))
    with pytest.raises(vitrail.InputError, match="token of the hub"):
        vitrail.AutoConfig.from_pretrained(FOLDER, token={"secret": SECRET})


def test_secret_in_a_file_is_not_written_again(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "in"))
    names = ["config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json"]
    for name in names:
        stored = json.loads((folder / name).read_text("utf-8")) if (folder / name).exists() else {}
        stored |= {"use_auth_token": SECRET, "kept_note": {"api_key": SECRET, "colour": "red"}}
        (folder / name).write_text(json.dumps(stored), encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = [
            vitrail.AutoConfig.from_pretrained(folder),
            FastTokenizer.from_pretrained(folder),
            vitrail.GenerationConfig.from_pretrained(folder),
            vitrail.AutoImageProcessor.from_pretrained(folder),
        ]
    assert not [one for one in caught if SECRET in str(one.message)]
    for name, one in zip(names, made, strict=True):
        one.save_pretrained(tmp_path / "out")
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert SECRET not in text and SECRET not in repr(one), name
        assert json.loads(text)["kept_note"] == {"colour": "red"}, name


@given(
    st.sampled_from(["", "use_", "hf_", "hub_", "push_to_hub_"]),
    st.sampled_from(["auth_token", "token", "api_key"]),
)
def test_names_of_secrets(before: str, name: str) -> None:
    assert is_secret(before + name) and is_secret((before + name).upper())
    value = {"a": [{before + name: SECRET, "b": 1}], "c": 2}
    assert without_secrets(value) == {"a": [{"b": 1}], "c": 2}


@pytest.mark.parametrize(
    "name", ["pad_token", "image_token", "image_token_id", "tokens", "num_tokens", "key_size", 3]
)
def test_names_that_are_no_secrets(name: Any) -> None:
    assert not is_secret(name)


@ALL
def test_subfolder_is_the_folder_that_is_read(name: str, tmp_path: Path) -> None:
    """The outer folder holds another model, whose settings must not be read."""
    shutil.copytree(DATA / "pixtral-0", tmp_path, dirs_exist_ok=True)
    shutil.copytree(FOLDER, tmp_path / "parts" / "encoder")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = LOADERS[name](tmp_path, subfolder="parts/encoder")
        wanted = LOADERS[name](tmp_path / "parts" / "encoder")
    if name in ("pipeline", "load"):
        made, wanted = made.model, wanted.model
    if hasattr(made, "config"):
        made, wanted = made.config, wanted.config
    assert (
        made.to_dict() == wanted.to_dict()
        if hasattr(made, "to_dict")
        else made.get_vocab() == wanted.get_vocab()
    )
    if hasattr(made, "name_or_path"):
        assert Path(made.name_or_path) == tmp_path / "parts" / "encoder"
    with pytest.raises(vitrail.CheckpointError, match="nowhere"):
        LOADERS[name](tmp_path, subfolder="nowhere")


@given(
    st.sampled_from(["../x", "/etc", "a/../../b", "C:/x", "..", "a\\..\\.."]), st.sampled_from(sorted(SMALL))
)
@example("..", "AutoConfig")
def test_subfolder_outside_is_refused(part: str, name: str) -> None:
    with pytest.raises(vitrail.InputError, match="must lie within"):
        SMALL[name](FOLDER, subfolder=part)


def test_subfolder_of_a_name_on_the_hub_is_refused() -> None:
    for load in SMALL.values():
        with pytest.raises(vitrail.UnsupportedError, match="folders on this disk"):
            load("someone/something", subfolder="x", local_files_only=True)
        with pytest.raises(vitrail.InputError, match="subfolder is the name"):
            load(FOLDER, subfolder=3)


def test_keywords_that_ask_for_what_is_done_anyway_are_taken() -> None:
    plain = FastTokenizer.from_pretrained(FOLDER)
    options = {
        "use_fast": True,
        "legacy": False,
        "from_slow": False,
        "verbose": True,
        "resume_download": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = vitrail.AutoTokenizer.from_pretrained(
            FOLDER, config=vitrail.AutoConfig.from_pretrained(FOLDER), tokenizer_mode="hf", **options
        )
    assert made.init_kwargs == plain.init_kwargs
    assert made("a b")["input_ids"] == plain("a b")["input_ids"]
