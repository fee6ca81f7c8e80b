"""Live parity with transformers 4.57 in float32: logits, hidden states, attentions, image features and loss.

Bound everywhere: 1e-5 of the tensor's largest value. Padding is compared where it is not padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.pairs import (
    IMAGE,
    TEXTS,
    VISION_LANGUAGE,
    Shape,
    build,
    close,
    images,
    inputs,
    joined_features,
)

SHAPES = [*VISION_LANGUAGE, *TEXTS]


def kept_rows(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T, …) → (rows that are no padding, …)."""
    return x[mask.bool()]


def labels_of(given: dict[str, Tensor]) -> Tensor:
    """Labels on the last three ids of each row that are no padding and no images."""
    ids, mask = given["input_ids"], given["attention_mask"]
    from_end = mask.flip(1).cumsum(1).flip(1)
    return torch.where((mask == 1) & (from_end <= 3) & (ids != IMAGE), ids, -100)


def both(shape: Shape, given: dict[str, Tensor], **options: Any) -> tuple[Any, Any]:
    pair = build(shape)
    with torch.no_grad():
        return pair.ours(**given, **options), pair.theirs(**given, **options)


@pytest.mark.parametrize("padding", ["left", "right", None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_output_equals_the_reference(shape: Shape, padding: str | None) -> None:
    given = inputs(shape, padding)
    mask = given["attention_mask"]
    ours, theirs = both(
        shape, given, labels=labels_of(given), output_hidden_states=True, output_attentions=True
    )
    close(kept_rows(ours.logits, mask), kept_rows(theirs.logits, mask), "logits")
    close(ours.loss, theirs.loss, "loss")
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for index, (a, b) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        close(kept_rows(a, mask), kept_rows(b, mask), f"hidden_states[{index}]")
    seen = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    for index, (a, b) in enumerate(zip(ours.attentions, theirs.attentions, strict=True)):
        assert a.shape == b.shape
        close(a.masked_fill(~seen, 0), b.masked_fill(~seen, 0), f"attentions[{index}]")
    for layer, (a, b) in enumerate(zip(ours.past_key_values, theirs.past_key_values, strict=True)):
        for mine, other in zip(a, b[:2], strict=True):
            there = other.shape[2]  # the reference keeps only what a window still sees
            assert there == mine.shape[2] or shape.text["sliding_window"]
            if not there:
                continue
            mine, other = mine[:, :, -there:].transpose(1, 2), other.transpose(1, 2)
            close(kept_rows(mine, mask[:, -there:]), kept_rows(other, mask[:, -there:]), f"cache[{layer}]")
    if shape.family != "mistral":
        close(ours.image_hidden_states, joined_features(theirs.image_hidden_states), "image_hidden_states")


@pytest.mark.parametrize("shape", [s for s in VISION_LANGUAGE if s.name in ("pixtral", "small-3")], ids=str)
def test_text_alone_through_a_model_with_eyes(shape: Shape) -> None:
    given = inputs(TEXTS[0], "left")
    ours, theirs = both(shape, given)
    mask = given["attention_mask"]
    close(kept_rows(ours.logits, mask), kept_rows(theirs.logits, mask), "logits")
    assert ours.image_hidden_states is None


@pytest.mark.parametrize("shape", VISION_LANGUAGE, ids=str)
def test_the_tower_alone(shape: Shape) -> None:
    pair = build(shape)
    given = images(shape)
    with torch.no_grad():
        ours = pair.ours.vision_tower(**given, output_hidden_states=True, output_attentions=True)
        theirs = pair.theirs.vision_tower(**given, output_hidden_states=True, output_attentions=True)
    close(ours.last_hidden_state, theirs.last_hidden_state, "last_hidden_state")
    for index, (a, b) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        close(a, b, f"hidden_states[{index}]")
    for index, (a, b) in enumerate(zip(ours.attentions, theirs.attentions, strict=True)):
        close(a, b, f"attentions[{index}]")


@pytest.mark.parametrize("shape", VISION_LANGUAGE, ids=str)
def test_image_features_one_by_one(shape: Shape) -> None:
    pair = build(shape)
    given = images(shape)
    layer = shape.outer.get("vision_feature_layer", -1)
    options = {"vision_feature_select_strategy": "full"} if shape.family == "llava" else {}
    with torch.no_grad():
        ours = pair.ours.get_image_features(**given, vision_feature_layer=layer, **options)
        theirs = pair.theirs.get_image_features(**given, vision_feature_layer=layer, **options)
    assert len(ours) == len(theirs) == len(shape.images)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        close(a, b, f"image {index}")


# The reference itself fails to continue behind a window of one position.
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.name != "window-1"], ids=str)
def test_a_continued_conversation(shape: Shape) -> None:
    """The reference's own cache, then three more ids for each row, in one call and one by one."""
    pair = build(shape)
    given = inputs(shape, "left")
    more = torch.tensor([[20, 21, 22], [30, 31, 32]])
    states: list[Any] = []
    for model in (pair.ours, pair.theirs):
        with torch.no_grad():
            first = model(**given)
            mask, last = given["attention_mask"], given["position_ids"][:, -1:]
            mask = torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], dim=1)
            follow = model(
                input_ids=more[:, :2], attention_mask=mask[:, :-1], position_ids=last + torch.tensor([[1, 2]]),
                past_key_values=first.past_key_values,
            )  # fmt: skip
            end = model(
                input_ids=more[:, 2:], attention_mask=mask, position_ids=last + 3,
                past_key_values=follow.past_key_values, output_attentions=True,
            )  # fmt: skip
        states.append((follow.logits, end.logits, end.attentions, mask))
    close(states[0][0], states[1][0], "two new ids")
    close(states[0][1], states[1][1], "one new id")
    unseen = (states[0][3] == 0)[:, None, None, :]
    for a, b in zip(states[0][2], states[1][2], strict=True):
        if shape.text.get("sliding_window"):
            continue  # the reference has dropped the keys behind the window by now
        close(a.masked_fill(unseen, 0), b.masked_fill(unseen, 0), "attentions")


@pytest.mark.parametrize("keep", [0, 1, 3, torch.tensor([0, 2]), torch.tensor([-1, 1, 1])], ids=str)
@pytest.mark.parametrize("shape", [VISION_LANGUAGE[0], VISION_LANGUAGE[6], TEXTS[0]], ids=str)
def test_logits_to_keep(shape: Shape, keep: int | Tensor) -> None:
    given = inputs(shape, None)
    ours, theirs = both(shape, given, logits_to_keep=keep)
    close(ours.logits, theirs.logits, "logits")


@pytest.mark.parametrize("shape", [VISION_LANGUAGE[0], VISION_LANGUAGE[6]], ids=str)
def test_embeddings_instead_of_ids(shape: Shape) -> None:
    pair = build(shape)
    given = inputs(shape, None)
    given["inputs_embeds"] = pair.theirs.get_input_embeddings()(given.pop("input_ids")).detach()
    with torch.no_grad():
        close(pair.ours(**given).logits, pair.theirs(**given).logits, "logits")


@pytest.mark.parametrize("shape", [VISION_LANGUAGE[0], TEXTS[0]], ids=str)
def test_tuple_instead_of_an_output(shape: Shape) -> None:
    given = inputs(shape, None)
    ours, theirs = both(shape, given, return_dict=False)
    assert isinstance(ours, tuple)
    close(ours[0], theirs[0], "logits")
