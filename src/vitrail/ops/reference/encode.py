"""Quantisation, floats to codes and scales, in PyTorch: the definition that native/encode.h must equal bit for bit.

Codes of 4- and 8-bit panels, one Lloyd iteration for the 4-bit levels, bitsandbytes' 4-bit maps, and the error of a
packed matrix. The choice of levels and the contents of files are in quant/.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitrail.ops import memory, packing_layout
from vitrail.ops.weight import Layout, PackedWeight, dequantize, integer_step

_CHUNK = 1 << 18  # elements per step, for panels and errors: bounds the memory of intermediates
_MAP_CHUNK = 1 << 20  # the same for maps; a multiple of every group size
# Candidate positions of a group's value of largest magnitude, on the scale of the levels. Beyond the last level it is
# clipped, which can reduce the error; the sign of the scale decides which end of the levels it meets.
_ENDS = (-60.0, -70.0, -82.0, 58.0)
_CELLS = 512  # half steps of a level: the nearest level is looked up, not searched
_TINY = 1e-38  # replaces the largest value of an all-zero group in a map


def row_blocks(matrix: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (first panel, last panel + 1, their rows) in chunks of bounded size."""
    rows, columns = matrix.shape
    step = max(1, _CHUNK // (packing_layout.ROWS * max(columns, 1)))
    for first in range(0, packing_layout.panel_count(rows), step):
        last = min(first + step, packing_layout.panel_count(rows))
        yield first, last, matrix[first * packing_layout.ROWS : last * packing_layout.ROWS]


def panel_shapes(matrix: Tensor, kind: str, group: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the shapes of codes and scales of a matrix (out, in) in PANELS4 or PANELS8 (`kind`)."""
    count, columns = packing_layout.panel_count(matrix.shape[0]), matrix.shape[1]
    return (count, columns // (4 if kind == Layout.PANELS8 else 8), 4 * packing_layout.ROWS), (
        count,
        columns // group,
        packing_layout.ROWS,
    )


def new_panels(matrix: Tensor, kind: str, group: int) -> tuple[Tensor, Tensor]:
    """Return uninitialised codes and scales of these shapes."""
    codes, scales = panel_shapes(matrix, kind, group)
    code_type = torch.int8 if kind == Layout.PANELS8 else torch.uint8
    return memory.empty(codes, code_type, matrix.device), memory.empty(scales, torch.bfloat16, matrix.device)


def encode_own(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """Encode a matrix (out, in) as PANELS8, or as PANELS4 with int8 `levels` (16,).

    A group with a non-finite value has codes 0 and the scale NaN; no other group has that.
    """
    codes, scales = new_panels(matrix, kind, group)
    columns = matrix.shape[1]
    for first, last, rows in row_blocks(matrix):
        groups = rows.float().reshape(-1, group)
        finite = groups.isfinite()
        wrong = None if finite.all() else ~finite.all(1)
        if wrong is not None:
            groups = torch.where(wrong[:, None], 0.0, groups)
        found, scale = _code8(groups) if levels is None else _code4(groups, levels.float())
        if wrong is not None:
            found[wrong], scale[wrong] = 0, torch.nan
        pack = packing_layout.pack8 if kind == Layout.PANELS8 else packing_layout.pack4
        codes[first:last] = pack(found.view(rows.shape))
        scales[first:last] = packing_layout.pack_scales(scale.view(rows.shape[0], columns // group))
    return codes, scales


def encode_fit(ratio: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """Return the sums of one Lloyd iteration: float64 (2, 16) for float32 `levels` (16,).

    `ratio` (n, group) holds groups divided by their extremes, `weights` (n,) the weight of each group's error. Per code, the
    sums of weight · worth · value and of worth², where the worth of a level is the group's scale times its weight.
    """
    table, turned = _nearest(levels), ratio.t().contiguous()
    scale = _best_scale(turned, levels[table])
    codes = table[_cells(turned * (2.0 / _divisor(scale)))].t().flatten()
    scale = scale * weights
    wanted = (scale * weights)[:, None] * ratio
    along = torch.bincount(codes, wanted.double().view(-1), 16)
    square = torch.bincount(codes, scale.double().square().repeat_interleave(ratio.shape[1]), 16)
    return torch.stack([along, square]).double()  # PyTorch returns integers for no groups


def map_bounds(quant_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return the boundaries between values of a map (16,), float32 (15,) ascending, and the code of each interval, uint8."""
    ordered, codes = quant_map.sort(stable=True)
    return (ordered[:-1] + ordered[1:]) / 2, codes.to(torch.uint8)


def encode_map4(values: Tensor, quant_map: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Encode floats (n,) with a map of 16 values, two codes per byte, the first in the high half; and float32 absmax."""
    bounds, order = map_bounds(quant_map)
    chunks = [
        _map_codes(values[at : at + _MAP_CHUNK], bounds, order, group)
        for at in range(0, values.numel(), _MAP_CHUNK)
    ]
    return memory.joined([codes for codes, _ in chunks]), memory.joined([scale for _, scale in chunks])


def squared_error(matrix: Tensor, packed: PackedWeight) -> Tensor:
    """Return Σ (decoded - value)² and Σ value² as float64 (2,); differences and squares are float32."""
    sums = torch.zeros(2, dtype=torch.float64)
    for first, last, rows in row_blocks(matrix):
        exact = rows.to(torch.float32)
        part = slice(first * packing_layout.ROWS, min(last * packing_layout.ROWS, matrix.shape[0]))
        decoded = dequantize(packed, torch.float32, part)
        sums[0] += (decoded - exact).square().sum(dtype=torch.float64).cpu()
        sums[1] += exact.square().sum(dtype=torch.float64).cpu()
    return sums


def _code8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes (n, group) and bfloat16 scales (n,)."""
    scales = _storable(groups.abs().amax(1) * (128.0 / 127.0))
    steps = groups / _divisor(scales)[:, None]
    return torch.round(steps * 128.0).clamp_(-127, 127).to(torch.int8), scales


def _code4(groups: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Return uint8 codes (n, group) and bfloat16 scales (n,) of small squared error."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))[:, 0]
    turned = groups.t().contiguous()
    table = _nearest(levels)
    ratio = turned / torch.where(extreme == 0, 1.0, extreme)  # the extreme is +1 in every group
    scale = _best_scale(ratio, levels[table]) * extreme
    scales = _storable(scale / integer_step(Layout.PANELS4))
    steps = turned / (_divisor(scales) * integer_step(Layout.PANELS4))
    codes = table.to(torch.uint8).index_select(0, _cells(steps * 2.0).view(-1))
    return codes.view(turned.shape).t().contiguous(), scales


def _best_scale(ratio: Tensor, values: Tensor) -> Tensor:
    """Return the worth of a level (n,) with the smallest squared error among candidates, for groups `ratio` (group, n).

    `values` holds the nearest level of every cell. With codes fixed, the best scale is w·q / q·q and reduces the squared
    error by (w·q)² / q·q. After the common candidates comes the optimal scale of the best one.
    """
    gain = torch.full_like(ratio[0], -1.0)
    scale = torch.zeros_like(gain)
    tried: list[float | Tensor] = [2.0 * end for end in _ENDS]
    for attempt in range(len(tried) + 1):
        factor = tried[attempt] if attempt < len(tried) else 2.0 / _divisor(scale)
        chosen = values.index_select(0, _cells(ratio * factor).view(-1)).view(ratio.shape)
        along = _total(ratio * chosen)
        square = _total(chosen * chosen).clamp_(min=1e-30)
        won = along * along / square
        better = won > gain
        gain = torch.where(better, won, gain)
        scale = torch.where(better, along / square, scale)
    return scale


def _total(products: Tensor) -> Tensor:
    """Sum the columns of (group, n) in a fixed order: elements 32 rows apart, then 8, then one by one."""
    blocks = (
        products.view(-1, 4, 8, products.shape[1]) if products.numel() else products.new_zeros(1, 4, 8, 0)
    )
    return _in_turn(_in_turn(_in_turn(blocks))) + 0.0  # no sum is -0


def _in_turn(parts: Tensor) -> Tensor:
    """Return parts[0] + parts[1] + … in this order."""
    first, *others = parts.unbind(0)
    for other in others:
        first = first + other
    return first


def _nearest(levels: Tensor) -> Tensor:
    """Return the code (512,) of the level nearest to each half step: exact, as midpoints of whole levels are half steps."""
    middles = (torch.arange(_CELLS, device=levels.device) - _CELLS // 2 + 0.5) / 2
    return torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2)


def _cells(half_steps: Tensor) -> Tensor:
    """Return the cell of `_nearest` for each value, in half steps of a level. Overwrites its argument."""
    return half_steps.add_(_CELLS // 2).clamp_(0, _CELLS - 1).to(torch.int32)


def _storable(scales: Tensor) -> Tensor:
    """Round to finite bfloat16: the largest float32 values have no scale that reaches them."""
    largest = torch.finfo(torch.bfloat16).max
    return scales.clamp(-largest, largest).to(torch.bfloat16)


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales.float())


def _map_codes(flat: Tensor, bounds: Tensor, order: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return packed codes (uint8) and scales (float32) of a flat chunk that begins at a group boundary."""
    values = flat.float()
    whole = values.numel() // group * group
    groups, rest = values[:whole].view(-1, group), values[whole:]
    absmax = groups.abs().amax(1)
    # Full groups multiply by the reciprocal, a short last one divides: the last bits differ.
    scaled = (groups * (1.0 / absmax.clamp(min=_TINY))[:, None]).view(-1)
    if rest.numel():
        last = rest.abs().max().clamp(min=_TINY)
        absmax, scaled = torch.cat([absmax, last[None]]), torch.cat([scaled, rest / last])
    scaled = torch.nn.functional.pad(scaled.clamp(-1, 1), (0, scaled.numel() % 2))
    nibbles = order[torch.bucketize(scaled, bounds, out_int32=True)]
    return nibbles[::2] << 4 | nibbles[1::2], absmax
