"""The multi-modal projectors: features of the vision tower → rows of the decoder.

Letters: L patches, packed · Dv vision width · D text width · m merge side · h w patch rows, columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrail.configs import LlavaConfig, Mistral3Config
from vitrail.images.grid import Grid
from vitrail.model.layers import Linear, RMSNorm, activation

Grids = Sequence[tuple[int, int]]


class LlavaMultiModalProjector(nn.Module):
    """linear_2(act(linear_1(x))) on every patch: Pixtral 12B (with biases) and Pixtral Large (without)."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        wide = config.vision_config.hidden_size * config.feature_layers
        narrow, bias = config.text_config.hidden_size, config.multimodal_projector_bias
        self.linear_1 = Linear(wide, narrow, bias=bias)
        self.linear_2 = Linear(narrow, narrow, bias=bias)
        self.act = activation(config.projector_hidden_act)

    def forward(self, layers: Sequence[Tensor], grids: Grids) -> Tensor:
        """Project features of one or several layers, each (L, Dv), concatenated → (L, D)."""
        out: Tensor = self.linear_2(self.act(self.linear_1(torch.cat(list(layers), dim=-1))))
        return out

    def tokens(self, grid: tuple[int, int]) -> int:
        """Return the number of rows of an image of (rows, columns) patches."""
        return Grid.of_size(*grid, cell=1).image_tokens


class Mistral3PatchMerger(nn.Module):
    """Merge of m × m neighbouring patches into one: channel-major columns through a linear layer."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.merging_layer = Linear(width * side * side, width, bias=False)

    def forward(self, features: Tensor, grids: Grids) -> Tensor:
        """Merge (L, Dv) → (Σ (h//m)·(w//m), Dv); rows and columns beyond whole squares are dropped."""
        m = self.side
        squares = []
        for image, (rows, cols) in zip(torch.split(features, [h * w for h, w in grids]), grids, strict=True):
            down, across = rows // m, cols // m
            grid = image.reshape(rows, cols, -1)[: down * m, : across * m]
            blocks = grid.reshape(down, m, across, m, -1).permute(0, 2, 4, 1, 3)  # (h/m, w/m, Dv, m, m)
            squares.append(blocks.reshape(down * across, -1))  # index = ch·m² + ky·m + kx
        merged: Tensor = self.merging_layer(torch.cat(squares))
        return merged


class Mistral3MultiModalProjector(nn.Module):
    """norm → m × m merge → linear_1 → act → linear_2: Mistral Small 3.1 and all later members.

    With several feature layers, norm and merger (each one layer wide) are applied to every layer's features, which
    are then concatenated for linear_1, the only part of the joint width.
    """

    def __init__(self, config: Mistral3Config) -> None:
        super().__init__()
        wide, narrow = config.vision_config.hidden_size, config.text_config.hidden_size
        bias = config.multimodal_projector_bias
        self.norm = RMSNorm(wide, config.text_config.rms_norm_eps)
        self.patch_merger = Mistral3PatchMerger(wide, config.spatial_merge_size)
        self.linear_1 = Linear(wide * config.feature_layers, narrow, bias=bias)
        self.linear_2 = Linear(narrow, narrow, bias=bias)
        self.act = activation(config.projector_hidden_act)

    def forward(self, layers: Sequence[Tensor], grids: Grids) -> Tensor:
        """Project features of one or several layers, each (L, Dv) → (merged tokens of all images, D)."""
        merged = [self.patch_merger(self.norm(features), grids) for features in layers]
        out: Tensor = self.linear_2(self.act(self.linear_1(torch.cat(merged, dim=-1))))
        return out

    def tokens(self, grid: tuple[int, int]) -> int:
        """Return the number of rows of an image of (rows, columns) patches."""
        return Grid.of_size(*grid, cell=self.patch_merger.side).image_tokens
