"""PixtralProcessor gives the ids, masks, sizes and pixels that transformers 5.23 recorded (golden/README of origin)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tiny import DATA
from vitrail.images.batch_feature import BatchFeature
from vitrail.processor.processor import PixtralProcessor

CHECKPOINTS = ("pixtral-0", "mistral3-0", "ministral3-0")
CASES = [
    (name, case) for name in CHECKPOINTS for case in json.loads((DATA / name / "cases.json").read_text())
]
IDS = [f"{name}-{case['name']}" for name, case in CASES]


@pytest.fixture(scope="module")
def processors() -> dict[str, PixtralProcessor]:
    return {name: PixtralProcessor.from_pretrained(DATA / name) for name in CHECKPOINTS}


def pictures(case: dict[str, Any]) -> list[list[Image.Image]]:
    return [[Image.open(DATA / "images" / f"{number:02d}.png") for number in row] for row in case["images"]]


def check(out: BatchFeature, name: str, case: dict[str, Any]) -> None:
    expected = load_file(DATA / name / f"case.{case['name']}.safetensors")
    assert torch.equal(out["input_ids"], expected["input_ids"])
    assert torch.equal(out["attention_mask"], expected["attention_mask"])
    assert ("pixel_values" in out) == ("pixel_values" in expected)
    if "pixel_values" in expected:
        assert torch.equal(out["image_sizes"], expected["image_sizes"].to(out["image_sizes"].dtype))
        torch.testing.assert_close(out["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "case"), CASES, ids=IDS)
def test_prompts_and_images(processors: dict[str, PixtralProcessor], name: str, case: dict[str, Any]) -> None:
    images = pictures(case)
    given = {"images": images} if any(images) else {}
    check(processors[name](text=case["prompts"], padding=True, return_tensors="pt", **given), name, case)


@pytest.mark.parametrize(("name", "case"), CASES, ids=IDS)
def test_conversations(processors: dict[str, PixtralProcessor], name: str, case: dict[str, Any]) -> None:
    """The recorded prompts written as conversations again give the same batch."""
    conversations = []
    for prompt, row in zip(case["prompts"], pictures(case), strict=True):
        before, _, question = prompt.removesuffix("[/INST]").partition("[INST]")
        system = before.removeprefix("<s>").removeprefix("[SYSTEM_PROMPT]").removesuffix("[/SYSTEM_PROMPT]")
        question = question.removeprefix("[IMG]" * len(row))
        parts = [{"type": "image", "image": image} for image in row] + [{"type": "text", "text": question}]
        turns = [{"role": "system", "content": system}] if system else []
        conversations.append([*turns, {"role": "user", "content": parts}])
    out = processors[name].apply_chat_template(
        conversations, tokenize=True, return_dict=True, padding=True, add_generation_prompt=True
    )
    check(out, name, case)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_looked_up_ids(processors: dict[str, PixtralProcessor], name: str) -> None:
    processor = processors[name]
    assert processor.image_ids == [10, 12, 13]
    assert processor.tokenizer.padding_side == "left"
    config = json.loads((DATA / name / "processor_config.json").read_text())
    assert processor.spatial_merge_size == config["spatial_merge_size"]
    assert processor.patch_size == config["patch_size"]
