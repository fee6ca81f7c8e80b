"""Both formats are one model: the same logits, the same bytes there and back again, at every published geometry's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import vitrail
from tests import geometries
from vitrail.ops import rope
from vitrail.weights.convert import convert
from vitrail.weights.rotary_rows import Heads, to_halves, to_pairs

CLASSES = {
    "llava": vitrail.LlavaForConditionalGeneration,
    "mistral3": vitrail.Mistral3ForConditionalGeneration,
}


@pytest.fixture(scope="module", params=geometries.PUBLISHED)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Folders of one small model in Hugging Face's and in Mistral's own format, and its class."""
    params = geometries.small(request.param)
    root = tmp_path_factory.mktemp("both")
    model = geometries.model_of(params)
    model.save_pretrained(root / "hf")
    shards = 3 if "Large" in request.param else 1
    geometries.write_native(root / "mistral", params, geometries.native_tensors(model, params), shards)
    return root / "hf", root / "mistral", type(model)


def logits(model: Any) -> Tensor:
    """Of a prompt with an image of 2 × 3 tokens, longer than the small yarn's range."""
    side = model.config.vision_config.patch_size * getattr(model.config, "spatial_merge_size", 1)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 2 * side, 3 * side, generator=generator)
    ids = torch.tensor([[1, 3, 10, 10, 10, 12, 10, 10, 10, 13, *range(100, 120)]])
    with torch.no_grad():
        return model(ids, pixel_values=pixels, image_sizes=[[2 * side, 3 * side]]).logits


def test_logits_are_equal_to_the_bit(both: tuple[Path, Path, Any]) -> None:
    hf, native, kind = both
    one, other = kind.from_pretrained(hf), kind.from_pretrained(native)
    assert torch.equal(logits(one), logits(other))
    assert one.config.text_config.tie_word_embeddings == other.config.text_config.tie_word_embeddings
    tied = other.lm_head.weight is other.get_input_embeddings().weight
    assert tied == other.config.text_config.tie_word_embeddings


def test_text_alone_from_both_formats(both: tuple[Path, Path, Any]) -> None:
    """MistralForCausalLM is the language part; vision=False is the whole model without its tower."""
    hf, native, kind = both
    ids = torch.tensor([[1, 3, *range(50, 75), 4]])
    with torch.no_grad():
        expected = kind.from_pretrained(hf)(ids).logits
        for folder in (hf, native):
            assert torch.equal(vitrail.MistralForCausalLM.from_pretrained(folder)(ids).logits, expected)
            blind = kind.from_pretrained(folder, vision=False)
            assert torch.equal(blind(ids).logits, expected)
            assert not any("vision" in name or "projector" in name for name in blind.state_dict())
            with pytest.raises(vitrail.InputError, match="vision=False"):
                logits(blind)
            with pytest.raises(vitrail.UnsupportedError, match="vision=False"):
                blind.save_pretrained(folder.parent / "never")


def content(folder: Path, *leave_out: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in leave_out}


def test_there_and_back_twice_is_the_same_to_the_byte(both: tuple[Path, Path, Any], tmp_path: Path) -> None:
    _, native, kind = both
    there = convert(native, tmp_path / "1", "hf").folder
    back = convert(there, tmp_path / "2", "mistral").folder
    for name, data in content(native).items():
        assert (back / name).read_bytes() == data, name
    again = convert(back, tmp_path / "3", "hf").folder
    assert content(again) == content(there)
    assert content(convert(again, tmp_path / "4", "mistral").folder) == content(back)
    assert torch.equal(logits(kind.from_pretrained(there)), logits(kind.from_pretrained(native)))


def test_hugging_face_there_and_back(both: tuple[Path, Path, Any], tmp_path: Path) -> None:
    hf, native, _ = both
    there = convert(hf, tmp_path / "1", "mistral").folder
    back = convert(there, tmp_path / "2", "hf").folder
    for name, data in content(hf).items():
        assert (back / name).read_bytes() == data, name
    if (native / "consolidated.safetensors").is_file():
        expected, found = (load_file(folder / "consolidated.safetensors") for folder in (native, there))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("heads", "width"), [(1, 2), (3, 8), (8, 4), (2, 44)])
def test_rows_in_pairs_and_in_halves(heads: int, width: int) -> None:
    """Each order undoes the other, and rotating pairs by hand gives the scores that halves give."""
    rows = torch.randn(heads * width, 5, dtype=torch.float64)
    halves = to_halves(geometries.interleaved(rows, heads), heads, "wq")
    assert torch.equal(halves, rows)
    assert torch.equal(to_pairs(rows, heads, "wq"), geometries.interleaved(rows, heads))
    x = torch.randn(4, 5, dtype=torch.float64)
    angle = rope.angles(torch.arange(4), rope.frequencies(width, 100.0)).double()
    q = (x @ rows.T).view(4, heads, width)
    turned = rope.rotate(q, *rope.cos_sin(angle, torch.float64))
    pairs = (x @ geometries.interleaved(rows, heads).T).view(4, heads, width // 2, 2)
    native = torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(angle), angle)[:, None]
    scores = torch.einsum("qhd,khd->hqk", turned, turned)
    own = torch.einsum("qhd,khd->hqk", *(torch.view_as_real(native).flatten(2),) * 2)
    assert torch.allclose(scores, own, atol=1e-6)


def test_only_queries_and_keys_are_turned() -> None:
    heads = Heads(query=8, key=2, vision=4)
    layer = "model.language_model.layers.0.self_attn."
    assert [heads.of(f"{layer}{x}_proj.weight") for x in "qkvo"] == [8, 2, None, None]
    tower = "model.vision_tower.transformer.layers.0.attention."
    assert [heads.of(f"{tower}{x}_proj.weight") for x in "qkvo"] == [4, 4, None, None]
