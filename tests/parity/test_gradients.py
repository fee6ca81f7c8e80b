"""Live parity of gradients with transformers 4.57 in float32: every parameter, the images and the embeddings.

Bound: 1e-5 of each gradient's largest value.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.pairs import IMAGE, TEXTS, VISION_LANGUAGE, Shape, build, close, inputs

SHAPES = [*VISION_LANGUAGE, *TEXTS]


def answer_labels(given: dict[str, Tensor]) -> Tensor:
    """Every id that has a predecessor and is no image, no padding."""
    ids, mask = given["input_ids"], given["attention_mask"]
    before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    return torch.where((mask * before == 1) & (ids != IMAGE), ids, -100)


def gradients(model: Any, given: dict[str, Tensor]) -> dict[str, Any]:
    """Of every parameter by name and of the images."""
    given = dict(given)
    if "pixel_values" in given:
        given["pixel_values"] = given["pixel_values"].clone().requires_grad_(True)
    model.zero_grad(set_to_none=True)
    model(**given, use_cache=False).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    if "pixel_values" in given:
        found["pixel_values"] = given["pixel_values"].grad
    return found


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if expected is None:  # a block behind the chosen feature layer
            assert ours[name] is None, name
        else:
            close(ours[name], expected, name)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_of_every_parameter(shape: Shape, padding: str) -> None:
    pair = build(shape, gain=0.7)
    given = inputs(shape, padding)
    given["labels"] = answer_labels(given)
    compare(gradients(pair.ours, given), gradients(pair.theirs, given))


@pytest.mark.parametrize("shape", [VISION_LANGUAGE[0], VISION_LANGUAGE[6], TEXTS[7]], ids=str)
def test_recomputing_blocks_changes_no_gradient(shape: Shape) -> None:
    pair = build(shape, gain=0.7)
    given = inputs(shape, "left")
    given["labels"] = answer_labels(given)
    plain = gradients(pair.ours.train(), given)
    pair.ours.gradient_checkpointing_enable()
    again = gradients(pair.ours, given)
    for name, expected in plain.items():
        assert torch.equal(again[name], expected), name
    pair.ours.gradient_checkpointing_disable()
    compare(gradients(pair.ours, given), gradients(pair.theirs, given))


@pytest.mark.parametrize("shape", [TEXTS[0], TEXTS[7]], ids=str)
def test_gradient_of_embeddings(shape: Shape) -> None:
    pair = build(shape, gain=0.7)
    given = inputs(shape, None)
    labels = answer_labels(given)
    start = pair.theirs.get_input_embeddings()(given.pop("input_ids")).detach()
    found = []
    for model in (pair.ours, pair.theirs):
        rows = start.clone().requires_grad_(True)
        model(**given, inputs_embeds=rows, labels=labels).loss.backward()
        found.append(rows.grad)
    close(found[0], found[1], "inputs_embeds")


@pytest.mark.parametrize("shape", [VISION_LANGUAGE[0], VISION_LANGUAGE[6]], ids=str)
def test_frozen_parts_get_no_gradient(shape: Shape) -> None:
    """A frozen tower, as adapters are trained: the projector learns, the tower keeps nothing."""
    pair = build(shape, gain=0.7)
    given = inputs(shape, "left")
    given["labels"] = answer_labels(given)
    pair.ours.vision_tower.requires_grad_(False)
    pair.theirs.model.vision_tower.requires_grad_(False)
    for model in (pair.ours, pair.theirs):
        model(**given).loss.backward()
    theirs = dict(pair.theirs.named_parameters())
    for name, parameter in pair.ours.named_parameters():
        if "vision_tower" in name:
            assert parameter.grad is None
        else:
            close(parameter.grad, theirs[name].grad, name)
