"""What `convert` makes of Mistral's own files, loaded by transformers 4.57: every name in its place, the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import vitrail
from tests import geometries
from vitrail.weights.convert import convert


# transformers knows Ministral 3 from version 5 on.
@pytest.mark.parametrize("name", ["Pixtral 12B", "Pixtral Large", "Small 3.1"])
def test_transformers_loads_what_is_converted(name: str, tmp_path: Path) -> None:
    params = geometries.small(name)
    model = geometries.model_of(params)
    native = geometries.write_native(
        tmp_path / "m", params, geometries.native_tensors(model, params), shards=2
    )
    folder = convert(native, tmp_path / "hf", "hf").folder
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert type(theirs).__name__ == type(model).__name__
    assert not any(info.values())
    side = params["vision_encoder"]["patch_size"] * params["vision_encoder"].get("spatial_merge_size", 1)
    ids = torch.tensor([[1, 3, 10, 10, 12, 10, 10, 13, *range(100, 110)]])
    given = {
        "pixel_values": torch.randn(1, 3, 2 * side, 2 * side),
        "image_sizes": torch.tensor([[2 * side] * 2]),
    }
    ours = vitrail.AutoModelForImageTextToText.from_pretrained(native)
    with torch.no_grad():
        expected = theirs.eval()(input_ids=ids, **given).logits
        found = ours(input_ids=ids, **given).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_a_text_model(tmp_path: Path) -> None:
    params = geometries.small("Small 3.1") | {"vision_encoder": None}
    model = geometries.model_of(params)
    native = geometries.write_native(tmp_path / "m", params, geometries.native_tensors(model, params))
    folder = convert(native, tmp_path / "hf", "hf").folder
    theirs, info = transformers.MistralForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
        found = vitrail.MistralForCausalLM.from_pretrained(native)(ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
