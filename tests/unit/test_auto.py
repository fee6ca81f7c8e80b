"""The Auto classes: which class a folder's files name, and what they refuse."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from vitrail.tokenizer.fast import FastTokenizer


@pytest.fixture
def copy(tiny_mistral3: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Mistral3 checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_mistral3, tmp_path / "copy"))


def change(path: Path, **values: Any) -> None:
    """Overwrite keys of a JSON file; None removes one."""
    data = json.loads(path.read_text("utf-8")) | values
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}), encoding="utf-8")


@pytest.mark.parametrize(
    ("family", "config", "model"),
    [
        ("llava", vitrail.LlavaConfig, vitrail.LlavaForConditionalGeneration),
        ("mistral3", vitrail.Mistral3Config, vitrail.Mistral3ForConditionalGeneration),
        ("ministral3", vitrail.Mistral3Config, vitrail.Mistral3ForConditionalGeneration),
    ],
)
def test_the_files_choose_the_classes(
    family: str, config: type, model: type, request: pytest.FixtureRequest
) -> None:
    """Configuration, model, processor and its parts."""
    folder = request.getfixturevalue(f"tiny_{family}")
    assert type(vitrail.AutoConfig.from_pretrained(folder)) is config
    assert type(vitrail.AutoModelForImageTextToText.from_pretrained(folder)) is model
    assert type(vitrail.AutoProcessor.from_pretrained(folder)) is vitrail.PixtralProcessor
    assert type(vitrail.AutoImageProcessor.from_pretrained(folder)) is vitrail.PixtralImageProcessor
    assert type(vitrail.AutoTokenizer.from_pretrained(str(folder))) is FastTokenizer


def test_a_text_model_is_loaded_by_its_own_class(tiny_llava: Path, tmp_path: Path) -> None:
    """MistralForCausalLM, through files and through a configuration; its processor is its tokenizer."""
    config = vitrail.AutoConfig.from_pretrained(tiny_llava).text_config
    model = vitrail.AutoModelForCausalLM.from_config(config)
    assert type(model) is vitrail.MistralForCausalLM
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llava / name, tmp_path)
    loaded = vitrail.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert type(vitrail.AutoProcessor.from_pretrained(tmp_path)) is FastTokenizer
    with pytest.raises(vitrail.ConfigError, match="AutoModelForCausalLM"):
        vitrail.AutoModelForImageTextToText.from_pretrained(tmp_path)
    with pytest.raises(vitrail.ConfigError, match="AutoModelForImageTextToText"):
        vitrail.AutoModelForCausalLM.from_pretrained(tiny_llava)


@pytest.mark.parametrize(
    ("named", "use_fast", "kind"),
    [
        ("PixtralImageProcessor", None, vitrail.PixtralImageProcessor),
        ("PixtralImageProcessorPil", None, vitrail.PixtralImageProcessor),
        ("PixtralImageProcessorFast", None, vitrail.PixtralImageProcessorFast),
        ("PixtralImageProcessor", True, vitrail.PixtralImageProcessorFast),
        ("PixtralImageProcessorFast", False, vitrail.PixtralImageProcessor),
    ],
)
def test_the_image_processor_that_is_named_or_asked_for(
    copy: Path, named: str, use_fast: bool | None, kind: type
) -> None:
    """use_fast wins over the file."""
    change(copy / "preprocessor_config.json", image_processor_type=named)
    kwargs = {} if use_fast is None else {"use_fast": use_fast}
    found = vitrail.AutoImageProcessor.from_pretrained(copy, size={"longest_edge": 70}, **kwargs)
    assert type(found) is kind
    assert found.size["longest_edge"] == 70


def test_the_image_processor_inside_processor_config(copy: Path) -> None:
    """transformers 5 writes it there."""
    settings = json.loads((copy / "preprocessor_config.json").read_text("utf-8"))
    (copy / "preprocessor_config.json").unlink()
    change(copy / "processor_config.json", image_processor=settings)
    assert type(vitrail.AutoImageProcessor.from_pretrained(copy)) is vitrail.PixtralImageProcessor
    change(copy / "processor_config.json", image_processor=None)
    with pytest.raises(vitrail.CheckpointError, match="preprocessor_config"):
        vitrail.AutoImageProcessor.from_pretrained(copy)


def test_a_foreign_image_processor_is_named(copy: Path) -> None:
    """CLIP's would resize otherwise."""
    change(copy / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    with pytest.raises(vitrail.ConfigError, match="CLIPImageProcessor"):
        vitrail.AutoImageProcessor.from_pretrained(copy)


@pytest.mark.parametrize(("model_type", "said"), [("gemma3", "gemma3"), (None, "model_type"), (7, "7")])
def test_an_unknown_model_type_is_named(copy: Path, model_type: Any, said: str) -> None:
    """Together with those that are known."""
    change(copy / "config.json", model_type=model_type)
    for auto in (vitrail.AutoConfig, vitrail.AutoModelForImageTextToText, vitrail.AutoModelForCausalLM):
        with pytest.raises(vitrail.ConfigError, match=said) as caught:
            auto.from_pretrained(copy)
        assert "mistral3" in str(caught.value)


def test_overrides_reach_what_is_loaded(tiny_mistral3: Path) -> None:
    """Of the configuration, the tokenizer and the processor; a configuration given is the one taken."""
    config = vitrail.AutoConfig.from_pretrained(tiny_mistral3, vision_feature_layer=-2)
    assert config.vision_feature_layer == -2
    assert vitrail.AutoTokenizer.from_pretrained(tiny_mistral3, padding_side="right").padding_side == "right"
    model = vitrail.AutoModelForImageTextToText.from_pretrained(tiny_mistral3, config=config)
    assert model.config.vision_feature_layer == -2
    assert vitrail.AutoConfig.for_model("mistral", hidden_size=64).hidden_size == 64


@pytest.mark.parametrize(
    "auto",
    [
        vitrail.AutoConfig,
        vitrail.AutoTokenizer,
        vitrail.AutoImageProcessor,
        vitrail.AutoProcessor,
        vitrail.AutoModelForImageTextToText,
        vitrail.AutoModelForCausalLM,
    ],
)
def test_no_code_of_a_checkpoint_is_run(auto: Any, tiny_mistral3: Path) -> None:
    """trust_remote_code=True warns once; False is how it is anyway. No objects of Auto classes exist."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if auto is not vitrail.AutoModelForCausalLM:
            assert auto.from_pretrained(tiny_mistral3, trust_remote_code=True, code_revision="x") is not None
            said = [str(one.message) for one in caught]
            wanted = (
                "no code of a checkpoint is ever run, so trust_remote_code and code_revision changes nothing."
            )
            assert said == [wanted]
    if auto is not vitrail.AutoModelForCausalLM:
        assert auto.from_pretrained(tiny_mistral3, trust_remote_code=False) is not None
    with pytest.raises(vitrail.InputError, match="from_pretrained"):
        auto()


def test_a_name_is_looked_up_on_the_hub_only_if_no_folder_has_it() -> None:
    """Offline the error tells what was looked for."""
    with pytest.raises(vitrail.CheckpointError, match="someone/something"):
        vitrail.AutoProcessor.from_pretrained("someone/something", local_files_only=True)


def test_mistakes_in_a_call_are_named(tiny_mistral3: Path) -> None:
    """Missing checkpoint, surplus arguments, unknown keywords."""
    with pytest.raises(vitrail.InputError, match="folder or name"):
        vitrail.AutoModelForImageTextToText.from_pretrained()
    config = vitrail.AutoConfig.from_pretrained(tiny_mistral3)
    with pytest.raises(vitrail.InputError, match="colour"):
        vitrail.AutoModelForImageTextToText.from_config(config, colour="red")
    with pytest.raises(vitrail.VitrailError, match="colour"):
        vitrail.AutoModelForImageTextToText.from_pretrained(tiny_mistral3, colour="red")
    with pytest.raises(vitrail.UnsupportedError, match="use_fast"):
        vitrail.AutoTokenizer.from_pretrained(tiny_mistral3, use_fast=False)
