"""from_pretrained by a hub's name, in every class that has it: what each fetches, and that it equals the folder's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests.hub_server import TOKEN, HubServer
from tests.unit.test_hub import no_sockets
from vitrail.errors import CheckpointError, ConfigError
from vitrail.weights.convert import convert

NAME = "owner/tiny"
SMALL = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CLASSES = (
    vitrail.AutoConfig,
    vitrail.AutoImageProcessor,
    vitrail.AutoProcessor,
    vitrail.AutoTokenizer,
    vitrail.GenerationConfig,
    vitrail.LlavaConfig,
    vitrail.PixtralImageProcessor,
    vitrail.PixtralProcessor,
)


@pytest.fixture(scope="module")
def both(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in both formats; norm_eps tells them apart."""
    folder = tmp_path_factory.mktemp("hub") / "both"
    convert(tiny_llava, folder, "mistral")
    shutil.copytree(tiny_llava, folder, dirs_exist_ok=True)
    params = json.loads((folder / "params.json").read_text("utf-8"))
    params["norm_eps"] = 0.25
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_what_needs_no_weights_fetches_none(hub: HubServer, both: Path, kind: Any) -> None:
    hub.add(NAME, both, private=True)
    kind.from_pretrained(NAME, token=TOKEN, revision="main")
    assert set(hub.sent()) == SMALL
    hub.forget()
    with no_sockets():
        kind.from_pretrained(NAME, local_files_only=True)


def test_a_tokenizer_of_mistrals_is_fetched_too(hub: HubServer) -> None:
    hub.add(NAME, {"tekken.json": b"{}", "params.json": b"{}"})
    with pytest.raises(CheckpointError):  # of its content
        vitrail.MistralCommonTokenizer.from_pretrained(NAME, format="mistral")
    assert hub.sent() == ["tekken.json", "params.json"]


def test_models_fetch_the_weights_of_one_format(hub: HubServer, both: Path, tmp_path: Path) -> None:
    hub.add(NAME, both)
    model = vitrail.AutoModelForImageTextToText.from_pretrained(NAME)
    assert set(hub.sent()) == {*SMALL, "model.safetensors"}
    assert len(hub.sent()) == len(SMALL) + 1
    hub.forget()
    own = vitrail.LlavaForConditionalGeneration.from_pretrained(NAME, format="mistral")
    assert hub.sent() == ["params.json", "consolidated.safetensors"]
    assert (model.config.text_config.rms_norm_eps, own.config.text_config.rms_norm_eps) == (1e-5, 0.25)
    assert torch.equal(model.lm_head.weight, own.lm_head.weight)
    with no_sockets():
        again = vitrail.LlavaForConditionalGeneration.from_pretrained(NAME, local_files_only=True)
    assert again.config.text_config.rms_norm_eps == 1e-5


def test_a_processor_follows_the_format(hub: HubServer, both: Path) -> None:
    hub.add(NAME, both)
    own = vitrail.AutoProcessor.from_pretrained(NAME, format="mistral")
    assert "config.json" not in hub.sent()
    assert own.image_processor.to_dict().get("dialect") == "mistral"
    assert vitrail.AutoProcessor.from_pretrained(NAME).image_processor.to_dict().get("dialect") is None


def test_a_pipeline_hands_the_hubs_keywords_on(hub: HubServer, both: Path, tmp_path: Path) -> None:
    hub.add(NAME, both)
    keywords = {"cache_dir": tmp_path / "other", "format": "mistral"}
    pipe = vitrail.pipeline("image-text-to-text", model=NAME, model_kwargs=keywords)
    assert pipe.model.config.text_config.rms_norm_eps == 0.25
    assert pipe.processor.image_processor.to_dict().get("dialect") == "mistral"
    assert not (tmp_path / "cache").exists()


def test_the_wrong_class_is_told_before_the_weights_come(hub: HubServer, both: Path) -> None:
    hub.add(NAME, both)
    with pytest.raises(CheckpointError, match="AutoModelForImageTextToText"):
        vitrail.Mistral3ForConditionalGeneration.from_pretrained(NAME)
    with pytest.raises(ConfigError, match="AutoModelForImageTextToText"):
        vitrail.AutoModelForCausalLM.from_pretrained(NAME)
    assert set(hub.sent()) == SMALL


def test_an_adapter_comes_from_the_hub(hub: HubServer, tiny_llava: Path, tmp_path: Path) -> None:
    model = vitrail.LlavaForConditionalGeneration.from_pretrained(tiny_llava)
    model.add_adapter(vitrail.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_adapter(tmp_path / "adapter")
    hub.add("owner/adapter", tmp_path / "adapter")
    plain = vitrail.LlavaForConditionalGeneration.from_pretrained(tiny_llava)
    plain.load_adapter("owner/adapter")
    assert plain.active_adapters() == ["default"]
    assert set(hub.sent()) == {"adapter_config.json", "adapter_model.safetensors"}
