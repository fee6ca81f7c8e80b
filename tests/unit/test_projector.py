"""Projectors: the merger's channel-major columns, left-over patches, several feature layers, biases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import tiny
from vitrail.model.projector import LlavaMultiModalProjector, Mistral3MultiModalProjector, Mistral3PatchMerger


def features(grids: list[tuple[int, int]], width: int, seed: int = 0) -> Tensor:
    rows = sum(h * w for h, w in grids)
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_merger_reads_channels_first(side: int) -> None:
    """Held against unfold, which published weights were trained with: index = channel·m² + y·m + x."""
    merger = tiny.randomize(Mistral3PatchMerger(6, side))
    grids = [(2 * side, 3 * side), (side, side), (side, 4 * side)]
    packed = features(grids, 6)
    expected = []
    for picture, (h, w) in zip(packed.split([h * w for h, w in grids]), grids, strict=True):
        image = picture.view(h, w, 6).permute(2, 0, 1)[None]
        columns = F.unfold(image, side, stride=side)[0].T
        expected.append(columns @ merger.merging_layer.weight.T)
    torch.testing.assert_close(merger(packed, grids), torch.cat(expected))


def test_one_column_of_the_merger_by_hand() -> None:
    merger = Mistral3PatchMerger(2, 2)
    with torch.no_grad():
        merger.merging_layer.weight.zero_()
        merger.merging_layer.weight[0, 1 * 4 + 1 * 2 + 0] = 1.0  # channel 1, lower left patch
    patches = torch.arange(8.0).view(4, 2)  # (2, 2) patches of two channels
    assert merger(patches, [(2, 2)]).tolist() == [[5.0, 0.0]]


def test_patches_that_fill_no_square_are_left_out() -> None:
    merger = tiny.randomize(Mistral3PatchMerger(4, 2))
    whole = features([(5, 3)], 4)
    cut = whole.view(5, 3, 4)[:4, :2].reshape(8, 4)
    torch.testing.assert_close(merger(whole, [(5, 3)]), merger(cut, [(4, 2)]))


def test_tokens_of_an_image() -> None:
    merged = Mistral3MultiModalProjector(tiny.config("mistral3"))
    assert [merged.tokens(grid) for grid in [(4, 6), (5, 3), (2, 2)]] == [6, 2, 1]
    plain = LlavaMultiModalProjector(tiny.config("llava"))
    assert [plain.tokens(grid) for grid in [(4, 6), (5, 3)]] == [24, 15]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_bias_is_obeyed(family: str, bias: bool) -> None:
    projector = tiny.model(family, multimodal_projector_bias=bias).multi_modal_projector
    assert (projector.linear_1.bias is not None) == bias
    assert (projector.linear_2.bias is not None) == bias


def test_llava_joins_the_features_of_several_layers() -> None:
    config = tiny.config("llava", vision_feature_layer=[-1, 0])
    projector = tiny.randomize(LlavaMultiModalProjector(config))
    width = config.vision_config.hidden_size
    last, first = features([(2, 3)], width), features([(2, 3)], width, 1)
    hidden = F.gelu(torch.cat([last, first], dim=1) @ projector.linear_1.weight.T + projector.linear_1.bias)
    expected = hidden @ projector.linear_2.weight.T + projector.linear_2.bias
    torch.testing.assert_close(projector([last, first], [(2, 3)]), expected)


def test_mistral3_norms_and_merges_each_layer_then_joins() -> None:
    """transformers declares linear_1 for all layers but a norm for one, and fails; see the projector's docstring."""
    config = tiny.config("mistral3", vision_feature_layer=[-1, 0])
    projector = tiny.randomize(Mistral3MultiModalProjector(config))
    width, grids = config.vision_config.hidden_size, [(4, 2), (2, 2)]
    layers = [features(grids, width, seed) for seed in (0, 1)]
    joined = torch.cat([projector.patch_merger(projector.norm(x), grids) for x in layers], dim=1)
    expected = F.gelu(joined @ projector.linear_1.weight.T) @ projector.linear_2.weight.T
    assert projector.linear_1.in_features == 2 * width
    torch.testing.assert_close(projector(layers, grids), expected)


@pytest.mark.parametrize("family", ["llava", "mistral3"])
def test_a_whole_model_with_several_feature_layers(family: str) -> None:
    model = tiny.model(family, vision_feature_layer=[-2, -1])
    side = model.config.vision_config.patch_size * 4
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        found = model.encode_images(pixels)[0]
        swapped = model.encode_images(pixels, vision_feature_layer=[-1, -2])[0]
        hidden = model.vision_tower(pixels, output_hidden_states=True).hidden_states
        expected = model.multi_modal_projector([hidden[-2][0], hidden[-1][0]], [(4, 4)])
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, swapped)
