"""PEFT's adapters on our models against the logits that PEFT recorded: LoRA, rsLoRA, DoRA, embeddings, a Pixtral."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vitrail
from tests.tiny import DATA

PEFT = DATA / "peft"
CASES = ["plain", "rslora_patterns", "dora", "embedding"]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


@pytest.fixture
def base() -> Any:
    return vitrail.MistralForCausalLM.from_pretrained(PEFT / "base")


def logits(model: Any) -> Tensor:
    ids = load_file(PEFT / "inputs.safetensors")["input_ids"].long()
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("case", CASES)
def test_logits_with_the_adapter_and_merged(base: Any, case: str) -> None:
    expected = load_file(PEFT / case / "expected.safetensors")
    base.load_adapter(PEFT / case)
    close(logits(base), expected["logits_adapter"])
    assert base.merge_and_unload() is base
    close(logits(base), expected["logits_merged"])
    state = base.state_dict()
    for name, weight in expected.items():
        if name.startswith("merged."):
            torch.testing.assert_close(state[name.removeprefix("merged.")], weight, rtol=1e-5, atol=1e-6)
    assert not any("adapters" in key or "base_layer" in key for key in state)


def test_several_adapters_are_switched_added_and_taken_away(base: Any) -> None:
    plain = load_file(PEFT / "inputs.safetensors")["logits_base"]
    close(logits(base), plain)
    for case in CASES:
        base.load_adapter(str(PEFT / case), adapter_name=case)
    for case in reversed(CASES):
        base.set_adapter(case)
        assert base.active_adapters() == [case]
        close(logits(base), load_file(PEFT / case / "expected.safetensors")["logits_adapter"])
    base.disable_adapters()
    assert torch.equal(logits(base), logits(vitrail.MistralForCausalLM.from_pretrained(PEFT / "base")))
    base.enable_adapters()
    close(logits(base), load_file(PEFT / "plain" / "expected.safetensors")["logits_adapter"])
    base.delete_adapter(CASES[1:])
    close(logits(base), load_file(PEFT / "plain" / "expected.safetensors")["logits_adapter"])
    base.delete_adapter("plain")
    assert set(base.state_dict()) == set(
        vitrail.MistralForCausalLM.from_pretrained(PEFT / "base").state_dict()
    )
    close(logits(base), plain)


@pytest.mark.parametrize("merged", [False, True])
def test_an_adapter_of_tower_projector_and_language_model(merged: bool) -> None:
    model: Any = vitrail.AutoModelForImageTextToText.from_pretrained(DATA / "pixtral-0")
    model.load_adapter(PEFT / "pixtral")
    if merged:
        model.merge_and_unload()
    expected = load_file(PEFT / "pixtral" / "expected.safetensors")
    for case in ("text_only", "single"):
        given = load_file(DATA / "pixtral-0" / f"case.{case}.safetensors")
        names = ("input_ids", "attention_mask", "pixel_values", "image_sizes")
        with torch.no_grad():
            out = model(**{name: given[name] for name in names if name in given})
        close(out.logits[:, -16:], expected[f"{case}.logits"])
        if "pixel_values" in given:
            close(out.image_hidden_states, expected["single.image_hidden_states"])


@pytest.mark.parametrize("case", CASES)
def test_saving_again_gives_the_same_tensors(base: Any, case: str, tmp_path: Path) -> None:
    base.load_adapter(PEFT / case)
    base.save_adapter(tmp_path)
    before = load_file(PEFT / case / "adapter_model.safetensors")
    after = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name for name in before if not name.endswith(".base_layer.weight")}
    assert set(after) == kept
    assert all(torch.equal(after[name], before[name]) for name in kept)
