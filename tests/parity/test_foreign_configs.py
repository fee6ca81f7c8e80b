"""Configuration objects of transformers and PEFT, and dicts, where Vitrail has a class of the same name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import vitrail
from tests.tiny import DATA
from vitrail.errors import ConfigError, UnsupportedError

transformers = pytest.importorskip("transformers")
FOLDER = DATA / "mistral3-0"
LOADERS = (vitrail.Mistral3ForConditionalGeneration, vitrail.AutoModelForImageTextToText)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_config_of_transformers_or_a_dict_loads_the_same_model(loader: Any) -> None:
    own = loader.from_pretrained(FOLDER)
    ids = torch.tensor([[1, 3, 40, 4]])
    for config in (
        transformers.AutoConfig.from_pretrained(FOLDER),
        json.loads((FOLDER / "config.json").read_text()),
    ):
        model = loader.from_pretrained(FOLDER, config=config)
        assert type(model.config) is type(own.config)
        assert model.config.text_config == own.config.text_config
        assert torch.equal(model(ids).logits, own(ids).logits)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    ("config", "words"), [(3, "got int"), ([1], "got list"), ({"model_type": "bert"}, "model_type 'bert'")]
)
def test_other_configs_are_refused(loader: Any, config: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loader.from_pretrained(FOLDER, config=config)


def test_quantization_config_of_transformers_packs_the_same() -> None:
    given = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    theirs, ours = (
        vitrail.Mistral3ForConditionalGeneration.from_pretrained(FOLDER, quantization_config=config)
        for config in (transformers.BitsAndBytesConfig(**given), vitrail.BitsAndBytesConfig(**given))
    )
    ids = torch.tensor([[1, 3, 40, 4]])
    assert torch.equal(theirs(ids).logits, ours(ids).logits)


def test_lora_config_of_peft_makes_the_same_adapter() -> None:
    peft = pytest.importorskip("peft")
    model = LOADERS[0].from_pretrained(FOLDER)
    names = model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]), "own")
    assert model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]), "peft") == names
    assert model.add_adapter({"r": 2, "target_modules": ["q_proj"]}, "dict") == names
    with pytest.raises(UnsupportedError, match="peft_type 'IA3'"):
        model.add_adapter(peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "other")
    with pytest.raises(ConfigError, match="got int"):
        model.add_adapter(3, "other")


@pytest.mark.filterwarnings("ignore:.*_config takes the place")
def test_a_part_of_transformers_is_one_of_ours() -> None:
    text = transformers.MistralConfig(
        vocab_size=600, hidden_size=64, num_attention_heads=4, num_key_value_heads=2
    )
    vision = transformers.PixtralVisionConfig(hidden_size=64, num_attention_heads=2)
    for config in (
        vitrail.Mistral3Config(text_config=text, vision_config=vision),
        vitrail.AutoConfig.from_pretrained(FOLDER, text_config=text, vision_config=vision),
    ):
        assert config.text_config == vitrail.MistralConfig.from_dict(json.loads(text.to_json_string()))
        assert config.text_config.num_key_value_heads == 2
        assert config.vision_config.hidden_size == 64
    with pytest.raises(ConfigError, match="text_config has model_type 'llama'"):
        vitrail.Mistral3Config(text_config=transformers.LlamaConfig())


def test_generation_config_of_transformers_or_a_dict_is_set_and_saved(tmp_path: Any) -> None:
    model = LOADERS[0].from_pretrained(FOLDER)
    options = {"eos_token_id": [2, 3], "pad_token_id": 11, "max_new_tokens": 3}
    for given in (options, transformers.GenerationConfig(**options), vitrail.GenerationConfig(**options)):
        model.generation_config = given
        assert model.generate(torch.tensor([[1, 20]])).shape[1] <= 5
        model.save_pretrained(tmp_path)
        held = json.loads((tmp_path / "generation_config.json").read_text())
        assert {name: held.get(name) for name in options} == options
    model.generation_config = None
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id
    with pytest.raises(ConfigError, match="must be a GenerationConfig or a dict, got int"):
        model.generation_config = 3
