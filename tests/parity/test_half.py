"""float16 and bfloat16: never further from transformers' float32 result than twice what transformers' own half is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.pairs import TEXTS, VISION_LANGUAGE, Shape, build, distance, inputs, joined_features

SHAPES = [*VISION_LANGUAGE, *TEXTS]


def results(model: Any, given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Everything that forward() computes, in one model's words; rows of padding left out."""
    given = {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}
    with torch.no_grad():
        output = model.to(dtype)(**given, output_hidden_states=True)
    mask = given["attention_mask"].bool()
    found = {"logits": output.logits[mask]}
    found |= {f"hidden_states[{i}]": h[mask] for i, h in enumerate(output.hidden_states)}
    features = getattr(output, "image_hidden_states", None)
    if features is not None:
        found["image_hidden_states"] = joined_features(features)
    assert all(x.dtype == dtype for x in found.values())
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_half_precision_is_as_near_as_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    pair = build(shape)
    given = inputs(shape, "left")
    exact = results(pair.theirs, given, torch.float32)
    reference = results(pair.theirs, given, dtype)
    ours = results(pair.ours, given, dtype)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        own, allowed = distance(ours[name], value), 2 * distance(reference[name], value)
        assert own <= allowed, f"{name}: {own:.2e} from float32, allowed {allowed:.2e}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_decoding_over_a_cache_is_as_near_as_the_reference(dtype: torch.dtype) -> None:
    """One new row and several new rows after a cache go other ways through attention()."""
    pair = build(TEXTS[0])
    given = inputs(TEXTS[0], None)
    exact = results(pair.theirs, given, torch.float32)["logits"]
    allowed = 2 * distance(results(pair.theirs, given, dtype)["logits"], exact)
    pair.ours.to(dtype)
    ids = given["input_ids"]
    cache, rows = None, []
    with torch.no_grad():
        for start, stop in ((0, 4), (4, 9), (9, 10), (10, ids.shape[1])):
            output = pair.ours(input_ids=ids[:, start:stop], past_key_values=cache)
            cache = output.past_key_values
            rows.append(output.logits[0])
    assert distance(torch.cat(rows), exact) <= allowed
