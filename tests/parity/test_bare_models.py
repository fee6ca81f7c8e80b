"""Live parity with transformers 4.57: models without a head, and gradients through what a call records.

Bound everywhere: 1e-5 of the tensor's largest value. Padding is compared where it is not padding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitrail
from tests.parity.pairs import (
    TEXTS,
    VISION_LANGUAGE,
    Pair,
    Shape,
    build,
    close,
    images,
    inputs,
    joined_features,
)

LLAVA = VISION_LANGUAGE[0]
MISTRAL3 = next(shape for shape in VISION_LANGUAGE if shape.name == "small-3")
TEXT = TEXTS[0]
SHAPES = [LLAVA, MISTRAL3, TEXT, *(s for s in TEXTS if s.name in ("window-6", "text-yarn"))]


def kept_rows(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask.bool()]


@pytest.mark.parametrize("padding", ["left", None])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bare_model_output_equals_the_reference(shape: Shape, padding: str | None) -> None:
    pair = build(shape)
    given = inputs(shape, padding)
    mask = given["attention_mask"]
    with torch.no_grad():
        ours, theirs = (
            model.model(**given, output_hidden_states=True, output_attentions=True)
            for model in (pair.ours, pair.theirs)
        )
    assert type(ours).__name__ == type(theirs).__name__
    assert list(ours.keys()) == [name for name in theirs if theirs[name] is not None]
    close(kept_rows(ours.last_hidden_state, mask), kept_rows(theirs.last_hidden_state, mask), "last")
    for index, (a, b) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        close(kept_rows(a, mask), kept_rows(b, mask), f"hidden_states[{index}]")
    seen = (mask[:, None, :, None] * mask[:, None, None, :]).bool()
    for index, (a, b) in enumerate(zip(ours.attentions, theirs.attentions, strict=True)):
        close(a.masked_fill(~seen, 0), b.masked_fill(~seen, 0), f"attentions[{index}]")
    if shape.family != "mistral":
        close(ours.image_hidden_states, joined_features(theirs.image_hidden_states), "image_hidden_states")


@pytest.mark.parametrize("shape", [LLAVA, MISTRAL3, TEXT], ids=str)
def test_bare_model_ways_of_calling_are_one(shape: Shape) -> None:
    """By place, by name, as a tuple, from embeddings, after a cache: what the model with a head computes."""
    model = build(shape).ours
    bare, given = model.model, inputs(shape, None)
    with torch.no_grad():
        plain = bare(**given)
        whole = model(**given, output_hidden_states=True)
        assert torch.equal(plain[0], whole.hidden_states[-1])
        assert torch.equal(
            bare(given["input_ids"], **{k: v for k, v in given.items() if k != "input_ids"})[0], plain[0]
        )
        values = bare(**given, return_dict=False)
        assert isinstance(values, tuple) and torch.equal(values[0], plain[0])
        assert len(values) == (2 if shape is TEXT else 3)
        assert len(bare(**given, return_dict=False, use_cache=False)) == len(values) - 1
        rows = model.get_input_embeddings()(given["input_ids"])
        from_rows = bare(**{k: v for k, v in given.items() if k != "input_ids"}, inputs_embeds=rows)
        assert torch.equal(from_rows[0], plain[0])
        if shape is not TEXT:
            features = bare.get_image_features(**images(shape))
            text = {k: v for k, v in given.items() if k not in ("pixel_values", "image_sizes")}
            for image in (features, features.pooler_output, torch.cat(list(features))):
                for one in (bare, model):
                    ready = one(**text, mm_encoder_outputs={"image": image})
                    assert torch.equal(ready[0], plain[0] if one is bare else whole.logits)
            with pytest.raises(vitrail.InputError, match="in the place of pixel_values"):
                bare(**given, mm_encoder_outputs={"image": features})
            with pytest.raises(vitrail.InputError, match="mm_encoder_outputs takes"):
                bare(**text, mm_encoder_outputs={"video": features})
        for name in ("cache", "past_key_values"):
            first = bare(
                **{
                    k: v[:, :-2] if k in ("input_ids", "attention_mask", "position_ids") else v
                    for k, v in given.items()
                }
            )
            rest = bare(input_ids=given["input_ids"][:, -2:], **{name: first.past_key_values})
            close(rest[0], plain[0][:, -2:], name)
        with pytest.raises(vitrail.InputError, match="one argument"):
            bare(given["input_ids"], cache=first.past_key_values, past_key_values=first.past_key_values)
        with pytest.raises(vitrail.UnsupportedError, match="does not know the argument colour"):
            bare(given["input_ids"], colour="red")


@pytest.mark.parametrize("shape", [LLAVA, MISTRAL3, TEXT], ids=str)
def test_bare_model_is_loaded_without_the_head(shape: Shape, tmp_path: Path) -> None:
    model = build(shape).ours
    model.save_pretrained(tmp_path)
    bare = type(model.model).from_pretrained(tmp_path)
    auto = vitrail.AutoModel.from_pretrained(tmp_path)
    given = inputs(shape, None)
    with torch.no_grad():
        expected = model.model(**given)[0]
        for loaded in (bare, auto):
            assert type(loaded) is type(model.model)
            assert torch.equal(loaded(**given)[0], expected)
    bare.save_pretrained(tmp_path / "bare")
    with torch.no_grad():
        assert torch.equal(type(bare).from_pretrained(tmp_path / "bare")(**given)[0], expected)


# --- gradients through what is recorded -------------------------------------------------------------------


def recorded_gradients(model: Any, given: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    """The gradients of every recorded tensor and of the parameters, from a number that depends on them all."""
    model.zero_grad(set_to_none=True)
    output = model(**given, output_hidden_states=True, output_attentions=True, use_cache=False)
    kept = {f"{name}[{i}]": x for name in ("hidden_states", "attentions") for i, x in enumerate(output[name])}
    for tensor in kept.values():
        tensor.retain_grad()
    mask = given.get("attention_mask")
    chosen = output[start]
    chosen = chosen if mask is None else chosen[mask.bool()]
    weights = torch.linspace(-1, 1, chosen.numel(), dtype=chosen.dtype).view_as(chosen)
    (chosen * weights).sum().backward()
    grads = {name: x.grad for name, x in kept.items()}
    return grads | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compare_gradients(pair: Pair, given: dict[str, Tensor], start: str) -> None:
    ours, theirs = (recorded_gradients(model, given, start) for model in (pair.ours, pair.theirs))
    assert ours.keys() == theirs.keys()
    mask = given.get("attention_mask")
    for name, expected in theirs.items():
        found = ours[name]
        assert (found is None) == (expected is None), name
        if expected is None:
            continue
        if name.startswith("hidden_states") and mask is not None:
            found, expected = kept_rows(found, mask), kept_rows(expected, mask)
        if name.startswith("attentions") and mask is not None:
            seen = (mask[:, None, :, None] * mask[:, None, None, :]).bool().tril()
            found, expected = found.masked_fill(~seen, 0), expected.masked_fill(~seen, 0)
        close(found, expected, name, bound=3e-5)


@pytest.mark.parametrize("padding", ["left", None])
@pytest.mark.parametrize("shape", [LLAVA, MISTRAL3, TEXT], ids=str)
def test_gradients_flow_through_recorded_tensors(shape: Shape, padding: str | None) -> None:
    compare_gradients(build(shape, gain=0.7), inputs(shape, padding), "logits")


@pytest.mark.parametrize("shape", [LLAVA, MISTRAL3], ids=str)
def test_gradients_flow_through_what_the_tower_records(shape: Shape) -> None:
    pair = build(shape, gain=0.7)
    towers = Pair(pair.ours.vision_tower, pair.theirs.model.vision_tower)
    given = images(shape)
    ours, theirs = ({} for _ in range(2))
    for model, into in ((towers.ours, ours), (towers.theirs, theirs)):
        output = model(**given, output_hidden_states=True, output_attentions=True)
        kept = {f"{n}[{i}]": x for n in ("hidden_states", "attentions") for i, x in enumerate(output[n])}
        for tensor in kept.values():
            tensor.retain_grad()
        last = output.last_hidden_state
        (last * torch.linspace(-1, 1, last.numel()).view_as(last)).sum().backward()
        into.update({name: x.grad for name, x in kept.items()})
        into.update({name: p.grad for name, p in model.named_parameters()})
    whole = torch.block_diag(*(torch.ones(h * w, h * w) for h, w in shape.images)).bool()
    for name, expected in theirs.items():
        found = ours[name]
        if name.startswith("attentions"):
            found, expected = found.masked_fill(~whole, 0), expected.masked_fill(~whole, 0)
        close(found, expected, name, bound=3e-5)


@pytest.mark.parametrize("shape", [LLAVA, TEXT], ids=str)
def test_recording_with_gradients_changes_no_number(shape: Shape) -> None:
    model = build(shape).ours
    given = inputs(shape, "left")
    plain = model(**given).logits
    for options in ({"output_hidden_states": True}, {"output_attentions": True}):
        assert torch.equal(model(**given, **options).logits, plain)


@pytest.mark.parametrize("start", ["hidden_states", "attentions"])
def test_a_loss_of_recorded_tensors_reaches_the_parameters(start: str) -> None:
    pair = build(TEXT, gain=0.7)
    given = inputs(TEXT, None)
    found = []
    for model in (pair.ours, pair.theirs):
        model.zero_grad(set_to_none=True)
        kept = model(**given, **{f"output_{start}": True})[start]
        (kept[1] * torch.linspace(-1, 1, kept[1].numel()).view_as(kept[1])).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.any()})
    assert found[0].keys() == found[1].keys() != set()
    for name, expected in found[1].items():
        close(found[0][name], expected, name, bound=3e-5)


# --- padding and caches, where the reference differs ------------------------------------------------------


@pytest.mark.parametrize("shape", [LLAVA, TEXT], ids=str)
def test_what_is_padding_is_zero(shape: Shape) -> None:
    model, given = build(shape).ours, inputs(shape, "left")
    mask = given["attention_mask"].bool()
    with torch.no_grad():
        output = model(**given, output_hidden_states=True, output_attentions=True)
        bare = model.model(**given)
    assert not mask.all()
    for rows in (output.logits, *output.hidden_states, bare.last_hidden_state):
        assert not rows[~mask].any() and rows[mask].any()
    for weights in output.attentions:
        assert not weights.transpose(1, 2)[~mask].any()


def test_a_label_behind_padding_does_not_count() -> None:
    pair, given = build(TEXT), inputs(TEXT, "left")
    first = given["attention_mask"].argmax(dim=1)
    row = int(first.argmax())
    labels = torch.full_like(given["input_ids"], -100)
    labels[row, first[row] + 1 :] = given["input_ids"][row, first[row] + 1 :]
    with torch.no_grad():
        without = pair.ours(**given, labels=labels).loss
        labels[row, first[row]] = given["input_ids"][row, first[row]]
        assert first[row] > 0 and torch.equal(pair.ours(**given, labels=labels).loss, without)
        assert not torch.isclose(pair.theirs(**given, labels=labels).loss, without, rtol=1e-6)


def test_cached_positions_carry_no_gradient() -> None:
    model, given = build(TEXT).ours, inputs(TEXT, None)
    ids = given["input_ids"]
    table = model.get_input_embeddings()
    rows = table(ids).detach().requires_grad_(True)
    first = model(inputs_embeds=rows[:, :-2])
    model(inputs_embeds=rows[:, -2:], past_key_values=first.past_key_values).logits.sum().backward()
    assert rows.grad is not None
    assert not rows.grad[:, :-2].any() and rows.grad[:, -2:].any()
