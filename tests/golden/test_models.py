"""Three tiny checkpoints as transformers 5.23 saved and ran them: logits, image features, loss, gradients, greedy ids.

The files are tests/golden/data/{pixtral-0,mistral3-0,ministral3-0}; inputs are the recorded ones, processors are
tested elsewhere. Bound: 1e-5 of each tensor's largest value.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vitrail

DATA = Path(__file__).parent / "data"
CHECKPOINTS = ["pixtral-0", "mistral3-0", "ministral3-0"]
CASES = ["single", "two_images", "text_only", "ragged_batch"]
IMAGE_END = 13
A_DOG = [84, 394, 4]  # "a dog[/INST]"


@cache
def model(name: str) -> Any:
    return vitrail.AutoModelForImageTextToText.from_pretrained(DATA / name)


def case(name: str, which: str) -> dict[str, Tensor]:
    return load_file(DATA / name / f"case.{which}.safetensors")


def inputs(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model was given; ids, masks and sizes were recorded as int32."""
    names = ("input_ids", "attention_mask", "image_sizes")
    given = {name: recorded[name].long() for name in names if name in recorded}
    return given | {name: recorded[name] for name in ("pixel_values",) if name in recorded}


def assert_close(ours: Tensor, expected: Tensor, what: str) -> None:
    assert ours.shape == expected.shape, what
    apart = float((ours - expected).abs().max() / expected.abs().max())
    assert apart <= 1e-5, f"{what}: {apart:.2e}"


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_image_features(name: str, which: str) -> None:
    recorded = case(name, which)
    given = inputs(recorded)
    # transformers' bare forward() counts positions over the padding; ministral3's query scaling sees that.
    given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None]
    with torch.no_grad():
        output = model(name)(**given)
    kept = given["attention_mask"].bool()
    assert_close(output.logits[kept], recorded["logits"][kept], "logits")
    if "pixel_values" in given:
        assert_close(output.image_hidden_states, recorded["image_hidden_states"], "image_hidden_states")


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_ids(name: str, which: str) -> None:
    recorded = case(name, which)
    found = model(name).generate(**inputs(recorded), max_new_tokens=12, do_sample=False)
    assert found.tolist() == recorded["generated"].tolist()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_loss_and_gradient_norms(name: str) -> None:
    """Prompt: image 0 and "a dog"; labels: its last six ids; recorded: every parameter's gradient's norm."""
    recorded, given = case(name, "loss"), inputs(case(name, "single"))
    start = given["input_ids"][:, : int((given["input_ids"] == IMAGE_END).nonzero()[0, 1]) + 1]
    given["input_ids"] = torch.cat([start, torch.tensor([A_DOG])], dim=1)
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -6:] = given["input_ids"][:, -6:]
    trained = vitrail.AutoModelForImageTextToText.from_pretrained(DATA / name)
    loss = trained(**given, labels=labels).loss
    assert_close(loss.detach().reshape(-1), recorded["loss"].reshape(-1), "loss")
    loss.backward()
    found = {name: p.grad.norm().detach().reshape(1) for name, p in trained.named_parameters()}
    norms = {key.removeprefix("gradnorm."): x for key, x in recorded.items() if key.startswith("gradnorm.")}
    assert found.keys() == norms.keys()
    for parameter, norm in norms.items():
        assert_close(found[parameter], norm, parameter)
