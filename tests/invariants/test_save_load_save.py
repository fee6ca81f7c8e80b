"""save → load → save gives the same bytes, for every family, sharded or not, plain or quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from tests import tiny

CLASSES = {
    "llava": vitrail.LlavaForConditionalGeneration,
    "mistral3": vitrail.Mistral3ForConditionalGeneration,
    "ministral3": vitrail.Mistral3ForConditionalGeneration,
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
QUANTISED: list[dict[str, Any]] = [
    NF4,
    {"load_in_4bit": True},
    NF4 | {"bnb_4bit_use_double_quant": True, "llm_int8_skip_modules": ["vision_tower", "lm_head"]},
    NF4 | {"bnb_4bit_quant_storage": "bfloat16", "llm_int8_skip_modules": ["lm_head"]},
    {"load_in_8bit": True},
]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("size", ["5GB", "100KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", CLASSES)
def test_plain(tmp_path: Path, family: str, dtype: torch.dtype, size: str) -> None:
    tiny.model(family).to(dtype).save_pretrained(tmp_path / "1", max_shard_size=size)
    model = CLASSES[family].from_pretrained(tmp_path / "1", dtype="auto")
    assert model.dtype == dtype
    model.save_pretrained(tmp_path / "2", max_shard_size=size)
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "2")


def test_text_model_and_tower(tmp_path: Path) -> None:
    config = tiny.config("mistral3")
    for number, model in enumerate(
        (vitrail.MistralForCausalLM(config.text_config), vitrail.PixtralVisionModel(config.vision_config))
    ):
        first, second = tmp_path / f"{number}.1", tmp_path / f"{number}.2"
        model.save_pretrained(first)
        type(model).from_pretrained(first).save_pretrained(second)
        assert _bytes(first) == _bytes(second)


@pytest.mark.parametrize("settings", QUANTISED, ids=range(len(QUANTISED)))
@pytest.mark.parametrize("family", CLASSES)
def test_quantised(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    tiny.write_checkpoint(tmp_path / "0", family)
    quantization = vitrail.BitsAndBytesConfig(**settings)
    first = CLASSES[family].from_pretrained(tmp_path / "0", quantization_config=quantization)
    first.save_pretrained(tmp_path / "1")
    second = CLASSES[family].from_pretrained(tmp_path / "1", dtype="auto")
    second.save_pretrained(tmp_path / "2")
    assert _bytes(tmp_path / "1") == _bytes(tmp_path / "2")
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)
