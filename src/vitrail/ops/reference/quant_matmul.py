"""Products with 4- and 8-bit panels in PyTorch: the definition that every kernel equals bit for bit.

Activations are rounded to int8 per row and group, groups are multiplied in integers, and their results are added in
float32 in ascending order: two multiplications and one addition per group, each rounded, never fused. So every
instruction set, number of threads and number of rows gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.ops import packing_layout
from vitrail.ops.weight import Layout, PackedWeight, dequantize, integer_step, stored_integers

TINY = 1e-30  # groups of activations below this count as zeros; keeps every scale a normal float32
_WORK = 1 << 20  # elements per block of intermediates, to stay in cache
_ROWS = 1024  # rows of activations multiplied at once


def round_rows(x: Tensor, group: int, layout: Layout) -> tuple[Tensor, Tensor]:
    """Quantise activations (rows, in) to int8 codes (rows, groups, group) and float32 scales (rows, groups).

    The scale includes the constant step of the weights' layout. A group with a non-finite value has the scale NaN, which
    makes the whole row of the product NaN; a group below 1e-30 has the scale 0.
    """
    groups = torch.unflatten(x.float(), 1, (-1, group))
    largest = groups.abs().amax(2)
    finite = largest.isfinite()
    used = finite & (largest >= TINY)
    divisor = torch.where(used, largest, 1.0)
    top = torch.full_like(
        divisor, 127.0
    )  # as a tensor, because PyTorch computes number / tensor by a reciprocal
    codes = torch.round(groups * torch.div(top, divisor)[:, :, None])
    codes = torch.where(used[:, :, None], codes, 0.0).to(torch.int8)
    scale = torch.div(divisor, top) * integer_step(layout)
    scale = torch.where(used, scale, torch.where(finite, 0.0, torch.nan))
    return codes, scale


def rounded_products(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """Multiply x (rows, in) by the transpose of each weight (out_i, in), plus bias: (rows, out_i) in x's dtype.

    Weights of one layout and group share one rounding of x.
    """
    rounded: dict[tuple[int, Layout], tuple[Tensor, Tensor]] = {}
    results = []
    for weight, bias in zip(weights, biases, strict=True):
        key = (weight.group, weight.layout)
        if key not in rounded:
            rounded[key] = round_rows(x, *key)
        results.append(_product(*rounded[key], weight, bias).to(x.dtype))
    return results


def rounded_input_grad(dy: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply dy (…, out) by the decoded weight (out, in): (…, in) in dy's dtype, as if x were not rounded.

    Rows are decoded block by block, and the blocks' products added in float32.
    """
    out, columns = weight.shape
    total = torch.zeros(*dy.shape[:-1], columns, dtype=torch.float32, device=dy.device)
    step = max(1, _WORK // (columns * packing_layout.ROWS)) * packing_layout.ROWS
    for first in range(0, out, step):
        block = slice(first, min(first + step, out))
        total += dy[..., block].float() @ dequantize(weight, torch.float32, block)
    return total.to(dy.dtype)


def _product(codes: Tensor, scale: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """Return float32 (rows, out) from rounded activations; chunks of rows and panels bound the memory."""
    if weight.layout == Layout.PANELS4:
        codes = packing_layout.paired(codes)
    rows, out = codes.shape[0], weight.shape[0]
    result = torch.empty(rows, out, dtype=torch.float32, device=codes.device)
    columns = weight.shape[1]
    share = max(columns, min(rows, _ROWS) * scale.shape[1]) * packing_layout.ROWS
    step = max(1, _WORK // max(share, 1))
    for first in range(0, packing_layout.panel_count(out), step):
        last = min(first + step, packing_layout.panel_count(out))
        block = slice(first * packing_layout.ROWS, min(last * packing_layout.ROWS, out))
        width = block.stop - block.start
        whole = stored_integers(weight, first, last)[:width].float().view(width, -1, weight.group)
        row_scales = packing_layout.unpack_scales(weight.tensors["scales"][first:last])[:width].float()
        for at in range(0, rows, _ROWS):
            part = slice(at, at + _ROWS)
            result[part, block] = _block(codes[part], scale[part], whole, row_scales)
    return result if bias is None else result + bias.float()


def _block(codes: Tensor, scale: Tensor, whole: Tensor, row_scales: Tensor) -> Tensor:
    """Multiply (rows, groups, group) × (width, groups, group) → (rows, width)."""
    # Integers below 2^24: a float32 product is exact in any order.
    dots = torch.bmm(codes.float().transpose(0, 1), whole.permute(1, 2, 0))  # (groups, rows, width)
    dots = dots.mul_(row_scales.t()[:, None, :]).mul_(scale.t()[:, :, None])
    total = torch.zeros_like(dots[0])
    for part in dots.unbind(0):
        total += part
    return total
