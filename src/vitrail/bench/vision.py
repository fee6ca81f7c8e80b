"""`vitrail bench vision`: square images through tower and projector, compared with PyTorch's products of these shapes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.bench.geometries import params_of
from vitrail.bench.machine import this_machine
from vitrail.bench.matmul import MatrixRate, tower_shapes
from vitrail.bench.random_model import random_model
from vitrail.bench.report import MULTIPLY, Measured, Report, Setting
from vitrail.bench.timing import by_turns
from vitrail.images.grid import Grid
from vitrail.model.cost import vision_cost


class Images:
    """`count` preprocessed noise images of side × side pixels; each call computes their features.

    The side is rounded down to whole tokens.
    """

    def __init__(self, model: Any, count: int, side: int) -> None:
        vision = model.config.vision_config
        token = vision.patch_size * int(getattr(model.config, "spatial_merge_size", 1))
        self.side = max(1, side // token) * token
        patches = self.side // vision.patch_size
        self.patches = patches * patches
        self.tokens = count * Grid.of_size(self.side, self.side, token).image_tokens
        self.cost = vision_cost(model, [(patches, patches)] * count)
        self._model = model
        generator = torch.Generator().manual_seed(0)
        self._pixels = torch.randn(count, 3, self.side, self.side, generator=generator).to(model.dtype)

    @torch.inference_mode()
    def __call__(self) -> list[Tensor]:
        """Return the features (tokens, D) of each image."""
        features: list[Tensor] = self._model.encode_images(self._pixels)
        return features


def bench_vision(setting: Setting, counts: Sequence[int]) -> Report:
    """Measure each of these numbers of images in one call; layers are the tower's, and the decoder has one."""
    params = params_of(setting.geometry, 1)
    params["vision_encoder"]["num_hidden_layers"] = setting.layers
    setting.progress("making weights")
    model = random_model(params, setting.format)
    setting.progress("warming up")
    works = [Images(model, count, setting.side or 1024) for count in counts]
    limit = MatrixRate(tower_shapes(model, works[0].patches))
    turns = by_turns(works, [limit.rate] * len(works), setting.turns())
    measured = []
    for count, work, turn in zip(counts, works, turns, strict=True):
        more = {"of_as_many_first_ones": turn.seconds / turns[0].seconds * counts[0] / count}
        what = f"{count} {'image' if count == 1 else 'images'} of {work.side} × {work.side} pixels"
        measured.append(
            Measured(what, work.tokens, work.cost, turn, MULTIPLY, more if count != counts[0] else {})
        )
    more_of_all = {
        "matrix_products": f"of one layer's shapes, by PyTorch in {str(limit.dtype).removeprefix('torch.')}"
    }
    return Report("vision", setting, this_machine(), measured, more_of_all)
