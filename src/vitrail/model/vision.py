"""PixtralVisionModel: patches of any number of images of any size → features.

Images are packed: L patches of all images in one (L, Dv) tensor, with one segment per image, so that attention stays
within an image without a mask. Letters: N images · P patch side · h w patch rows, columns.
Source: Pixtral 12B (arXiv 2410.07073) §2.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrail.configs import PixtralVisionConfig
from vitrail.errors import InputError, UnsupportedError
from vitrail.model.layers import GatedMLP, Linear, RMSNorm, project
from vitrail.model.outputs import BaseModelOutput
from vitrail.model.padded import refuse_unknown
from vitrail.model.pretrained import PreTrainedModel
from vitrail.model.record import Record
from vitrail.ops import rope, threads
from vitrail.ops.attention import AttentionPlan
from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.inputs import as_pixels, check_flags
from vitrail.ops.linear import linear
from vitrail.ops.rows import rotate_pair
from vitrail.ops.segments import Segments

NORM_EPS = 1e-5  # of every norm of the tower; not in any configuration

# Patches per pass through the blocks, by device type (measured: benchmarks/RESULTS.md). More of them make a CPU a
# third slower per image; other devices want large products.
ROWS = {"cpu": 1024}
OTHER_ROWS = 32768


class PixtralAttention(nn.Module):
    """Multi-head attention within each image, two-dimensional rotary embedding."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_dim = config.head_dim
        width = self.heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, width, bias=False)
        self.k_proj = Linear(config.hidden_size, width, bias=False)
        self.v_proj = Linear(config.hidden_size, width, bias=False)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, record: Record) -> Tensor:
        projected = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (y.reshape(len(y), self.heads, -1) for y in projected)
        q, k = rotate_pair(q, k, cos, sin)
        scale = self.head_dim**-0.5
        mixed = record.attend(plan, q, k, v, scale=scale, layer=0, window=None)
        out: Tensor = self.o_proj(mixed.flatten(1))
        return out


class PixtralAttentionLayer(nn.Module):
    """One block of the tower: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, NORM_EPS)
        self.attention = PixtralAttention(config)
        self.ffn_norm = RMSNorm(config.hidden_size, NORM_EPS)
        self.feed_forward = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, plan: AttentionPlan, record: Record) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, plan, record)
        x = x + self.feed_forward(self.ffn_norm(x))
        return x


class PixtralTransformer(nn.Module):
    """The blocks of the tower, one after another."""

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PixtralAttentionLayer(config) for _ in range(config.num_hidden_layers))


class PixtralVisionModel(PreTrainedModel):
    """Pixtral vision tower.

    Every image keeps its own size and aspect ratio; a patch attends to its own image only.
    """

    config_class: ClassVar[type[PixtralVisionConfig]] = PixtralVisionConfig
    base_model_prefix: ClassVar[str] = "vision_encoder"
    main_input_name: ClassVar[str] = "pixel_values"
    config: PixtralVisionConfig

    def __init__(self, config: PixtralVisionConfig) -> None:
        super().__init__(config)
        self.patch_size = config.patch_size
        side = config.patch_size
        self.patch_conv = nn.Conv2d(config.num_channels, config.hidden_size, side, stride=side, bias=False)
        self.ln_pre = RMSNorm(config.hidden_size, NORM_EPS)
        self.transformer = PixtralTransformer(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the convolution that embeds patches."""
        return self.patch_conv

    def forward(
        self,
        pixel_values: Tensor,
        image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> "BaseModelOutput | tuple[Any, ...]":
        """Return the features of all patches of all images.

        Args:
            pixel_values: (N, 3, H, W) float; smaller images are padded at the right and the bottom.
            image_sizes: (N, 2) height and width in pixels without the padding; None: all are H × W.

        Returns:
            BaseModelOutput with last_hidden_state (1, L, Dv), or a tuple for return_dict=False.

        Raises:
            InputError: shapes or sizes that do not fit.
        """
        if args:
            raise UnsupportedError("PixtralVisionModel.forward does not know further arguments.")
        refuse_unknown("PixtralVisionModel.forward", kwargs)
        check_flags(output_attentions=output_attentions, return_dict=return_dict)
        check_flags(output_hidden_states=output_hidden_states)
        pixel_values, image_sizes = as_pixels(pixel_values, image_sizes)
        if pixel_values is None:
            raise InputError("the vision tower needs pixel_values; got None.")
        hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weights = self.config.output_attentions if output_attentions is None else output_attentions
        grids = self.grids(pixel_values, image_sizes)
        images = _Images([h * w for h, w in grids])
        record = Record(hidden=hidden, weights=weights, layout=images)
        last = self.encode(pixel_values, grids, record)
        output = BaseModelOutput(
            last_hidden_state=record.hidden_states[-1] if hidden else images.scatter(last),
            hidden_states=tuple(record.hidden_states) if hidden else None,
            attentions=tuple(record.attentions) if weights else None,
        )
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def grids(
        self, pixel_values: Tensor, image_sizes: "Tensor | Sequence[Sequence[int]] | None"
    ) -> list[tuple[int, int]]:
        """Return (rows, columns) of patches of each image. Raises InputError for sizes that do not fit the pixels."""
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise InputError(
                f"pixel_values must have the shape (images, {self.config.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        count, _, height, width = pixel_values.shape
        if not count:
            raise InputError("pixel_values holds no image; leave it out for text alone.")
        sizes = (
            [(height, width)] * count
            if image_sizes is None
            else [(int(h), int(w)) for h, w in _host(image_sizes)]
        )
        if len(sizes) != count:
            raise InputError(f"{count} images in pixel_values, but {len(sizes)} in image_sizes.")
        for number, (h, w) in enumerate(sizes):
            if not (self.patch_size <= h <= height and self.patch_size <= w <= width):
                raise InputError(
                    f"image {number}: image_sizes says {h}×{w} pixels; it must be at least one patch of "
                    f"{self.patch_size} and at most pixel_values' {height}×{width}."
                )
        return [(h // self.patch_size, w // self.patch_size) for h, w in sizes]

    def encode(
        self,
        pixel_values: Tensor,
        grids: Sequence[tuple[int, int]],
        record: Record | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """Return packed features (L, Dv) after `depth` blocks (default all) of images with the given grids.

        Images run in groups: a group's activations stay in the CPU's cache, and memory does not grow with the number
        of images. Recording in the graph of gradients makes all images one group.
        """
        record = Record() if record is None else record
        if record.in_graph:
            return self._encode(pixel_values, grids, record, depth)
        parts, records = [], []
        for group in _groups(grids, ROWS.get(self.patch_conv.weight.device.type, OTHER_ROWS)):
            records.append(Record(record.hidden, record.weights))
            rows = sum(h * w for h, w in grids[group])
            size, again = (
                self.config.hidden_size * self.config.intermediate_size,
                self.is_gradient_checkpointing,
            )
            with threads.fitting(rows, size, recomputed=again):
                parts.append(self._encode(pixel_values[group], grids[group], records[-1], depth))
        record.join(records)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _encode(
        self, pixel_values: Tensor, grids: Sequence[tuple[int, int]], record: Record, depth: int | None
    ) -> Tensor:
        weight = self.patch_conv.weight
        patches = torch.cat(
            [_patches(p, grid, self.patch_size) for p, grid in zip(pixel_values, grids, strict=True)]
        )
        x = self.ln_pre(linear(patches.to(device=weight.device, dtype=weight.dtype), weight.flatten(1)))
        cos, sin = self._rotation(grids, x)
        plan = AttentionPlan(AttentionMetadata(Segments.from_grids(grids, device=x.device)))
        x = record.see(x)
        for layer in list(self.transformer.layers)[:depth]:
            x = record.see(self.run_layer(layer, x, cos, sin, plan, record))
        return x

    def _rotation(self, grids: Sequence[tuple[int, int]], like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos, sin (L, K); each image's positions begin at (0, 0)."""
        places = [torch.cartesian_prod(torch.arange(rows), torch.arange(cols)) for rows, cols in grids]
        place = torch.cat(places).to(like.device)
        inv_freq = rope.frequencies(self.config.head_dim, self.config.rope_theta, like.device)
        return rope.cos_sin(rope.grid_angles(place[:, 0], place[:, 1], inv_freq), like.dtype)


def _groups(grids: Sequence[tuple[int, int]], rows: int) -> list[slice]:
    """Group neighbouring images up to `rows` patches in all; a larger image is a group of its own."""
    groups: list[slice] = []
    room = 0
    for number, (h, w) in enumerate(grids):
        if groups and h * w <= room:
            groups[-1] = slice(groups[-1].start, number + 1)
        else:
            groups.append(slice(number, number + 1))
            room = rows
        room -= h * w
    return groups


def _host(sizes: "Tensor | Sequence[Sequence[int]]") -> "Sequence[Sequence[int]]":
    if isinstance(sizes, Tensor):
        sizes = sizes.tolist()
    if not all(isinstance(pair, (list, tuple, Tensor)) and len(pair) == 2 for pair in sizes):
        raise InputError(f"image_sizes must be pairs (height, width), one per image, got {sizes!r:.200}.")
    return sizes


def _patches(pixels: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Cut (C, H, W) → (h·w, C·P·P): the convolution's receptive fields, without padding."""
    rows, cols = grid
    cut = pixels[:, : rows * side, : cols * side]
    fields = cut.reshape(pixels.shape[0], rows, side, cols, side).permute(1, 3, 0, 2, 4)  # (h, w, C, P, P)
    return fields.reshape(rows * cols, -1)


class _Images:
    """Layout of the tower's output: the patches of all images in one row, (1, L, …).

    Args:
        patches: number of patches of each image.
    """

    def __init__(self, patches: Sequence[int]) -> None:
        self._patches = patches

    def scatter(self, rows: Tensor) -> Tensor:
        """Scatter rows (L, …) → (1, L, …)."""
        return rows[None]

    def gather(self, laid_out: Tensor) -> Tensor:
        """Gather (1, L, …) → rows (L, …)."""
        return laid_out[0]

    def scatter_weights(self, per_segment: Sequence[Tensor]) -> Tensor:
        """Scatter attention weights of each image (A, l, l) → (1, A, L, L), zero between images."""
        total = sum(self._patches)
        out = per_segment[0].new_zeros(1, per_segment[0].shape[0], total, total)
        for place, weights in zip(self._places(), per_segment, strict=True):
            out[0, :, place, place] = weights
        return out

    def gather_weights(self, laid_out: Tensor) -> list[Tensor]:
        """Gather attention weights (1, A, L, L) → of each image (A, l, l)."""
        return [laid_out[0, :, place, place] for place in self._places()]

    def _places(self) -> list[slice]:
        ends = list(accumulate(self._patches))
        return [slice(end - count, end) for end, count in zip(ends, self._patches, strict=True)]
