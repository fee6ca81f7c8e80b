"""Vitrail's own formats: a matrix becomes q4, q8 or bf16 panels. Decoding is in ops/weight.py.

q4 takes 4.5 bits a weight with groups of 32: sixteen levels per matrix, fitted to the matrix itself, and one
bfloat16 scale per group. q8 takes 8.5 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError
from vitrail.ops import memory, panels
from vitrail.ops.weight import OWN_KINDS, OWN_STEPS, PackedWeight, dequantize

GROUPS = (32, 64, 128)
_TOP = 63  # largest level: products of pairs then fit the 16-bit sums of older instruction sets
_CHUNK = 1 << 18  # elements quantised at once: bounds the memory for intermediates
_SAMPLE = 1 << 18  # elements that the levels are fitted to
_ROUNDS = 12  # of fitting; more changes the third digit of the error
# Where a group's value of largest magnitude is tried to lie, on the scale of the levels. Beyond the last level
# it is cut, which can pay; the sign of the scale decides which end of the levels it meets.
_ENDS = (-60.0, -70.0, -82.0, 58.0)
# Levels fitted to normally distributed values: where fitting begins, and what a matrix of zeros gets.
_START = (-63, -46, -35, -27, -20, -14, -8, -2, 3, 9, 14, 20, 27, 34, 44, 56)
_CELLS = 512  # half steps of a level: the nearest level is looked up, not searched


def quantize_own(
    weight: Tensor, kind: str, group: int = 32, *, name: str = "the matrix", dtype: torch.dtype | None = None
) -> PackedWeight:
    """A matrix (out, in) of floats as "q4", "q8" or "bf16" panels; the same bits each time it is done.

    `group` neighbouring columns share a scale (32, 64 or 128, and it divides `in`). Decoded values are rounded
    to `dtype` (the matrix's own). ConfigError for a kind or group that does not fit, CheckpointError for a value
    that is not finite; both begin with `name`.
    """
    _check(weight, kind, group, name)
    matrix, dtype = weight.detach(), dtype or weight.dtype
    shape = (matrix.shape[0], matrix.shape[1])
    if kind == "bf16":
        codes = panels.pack_pairs(matrix.to(torch.bfloat16))
        return PackedWeight(kind, shape, 1, {"codes": codes}, dtype)
    count, columns = panels.panel_count(shape[0]), shape[1]
    step = 4 if kind == "q8" else 8
    code_type = torch.int8 if kind == "q8" else torch.uint8
    tensors = {
        "codes": memory.empty((count, columns // step, 64), code_type, matrix.device),
        "scales": memory.empty((count, columns // group, panels.ROWS), torch.bfloat16, matrix.device),
    }
    if kind == "q4":
        tensors["levels"] = _fit_levels(matrix, group).to(matrix.device)
    for first, last, rows in _blocks(matrix):
        if not rows.isfinite().all():
            raise CheckpointError(f"{name} holds a value that is not finite; it cannot be stored as {kind}.")
        groups = rows.float().reshape(-1, group)
        if kind == "q8":
            codes, scales = _code8(groups)
            tensors["codes"][first:last] = panels.pack8(codes.view(-1, columns))
        else:
            codes, scales = _code4(groups, tensors["levels"].float())
            tensors["codes"][first:last] = panels.pack4(codes.view(-1, columns))
        tensors["scales"][first:last] = panels.pack_scales(scales.view(-1, columns // group))
    return PackedWeight(kind, shape, group, tensors, dtype)


def relative_error(weight: Tensor, packed: PackedWeight) -> float:
    """‖decoded − weight‖ / ‖weight‖ (Frobenius) without the rounding to the result's dtype; 0 for zeros."""
    exact = PackedWeight(packed.kind, packed.shape, packed.group, packed.tensors, torch.float32)
    error = norm = 0.0
    for first, last, rows in _blocks(weight.detach()):
        stop = min(last * panels.ROWS, packed.shape[0])
        decoded = dequantize(exact, torch.float32, slice(first * panels.ROWS, stop))
        values = rows.double()
        error += float((decoded.double() - values).square().sum())
        norm += float(values.square().sum())
    return float((error / norm) ** 0.5) if norm else 0.0


def _check(weight: Tensor, kind: str, group: int, name: str) -> None:
    if kind not in OWN_KINDS:
        raise ConfigError(f"{name} cannot be stored as {kind!r}; the formats are {', '.join(OWN_KINDS)}.")
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ConfigError(
            f"{name} must be a matrix of floats to be stored as {kind}, got {weight.dtype} {tuple(weight.shape)}."
        )
    if kind == "bf16":
        return
    if group not in GROUPS:
        raise ConfigError(f"{name}: groups of {group} columns are not supported, only 32, 64 and 128.")
    if weight.shape[1] % group:
        raise ConfigError(
            f"{name} has {weight.shape[1]} columns, which groups of {group} do not divide; as {kind} it needs a "
            f"multiple of {group}. Keep it in bf16."
        )


def _blocks(matrix: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(first panel, last panel + 1, their rows) for pieces of bounded size."""
    rows, columns = matrix.shape
    step = max(1, _CHUNK // (panels.ROWS * max(columns, 1)))
    for first in range(0, panels.panel_count(rows), step):
        last = min(first + step, panels.panel_count(rows))
        yield first, last, matrix[first * panels.ROWS : last * panels.ROWS]


def _code8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (n, group) and bfloat16 scales (n,)."""
    scales = _storable(groups.abs().amax(1) * (128.0 / 127.0))
    steps = groups / _divisor(scales)[:, None]
    return torch.round(steps * 128.0).clamp_(-127, 127).to(torch.int8), scales


def _code4(groups: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 codes (n, group) and bfloat16 scales (n,) that make the squared error small."""
    extreme = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    ratio = groups / torch.where(extreme == 0, 1.0, extreme)  # the extreme is +1 in every group
    table = _nearest(levels)
    scale = _best_scale(ratio, levels[table]) * extreme[:, 0]
    scales = _storable(scale / OWN_STEPS["q4"])
    steps = groups / (_divisor(scales) * OWN_STEPS["q4"])[:, None]
    return table.to(torch.uint8).index_select(0, _cells(steps * 2.0).view(-1)).view(groups.shape), scales


def _best_scale(ratio: Tensor, values: Tensor) -> Tensor:
    """The worth of a level (n,) among those tried that leaves the least squared error.

    `values` holds the nearest level of every cell. With codes fixed, the best scale is w·q / q·q and takes
    (w·q)² / q·q from the squared error. After the ends that all groups try comes the best one's own scale.
    """
    gain = torch.full_like(ratio[:, 0], -1.0)
    scale = torch.zeros_like(gain)
    tried: list[float | Tensor] = [2.0 * end for end in _ENDS]
    for attempt in range(len(tried) + 1):
        factor = tried[attempt] if attempt < len(tried) else (2.0 / _divisor(scale))[:, None]
        chosen = values.index_select(0, _cells(ratio * factor).view(-1)).view(ratio.shape)
        along = torch.linalg.vecdot(ratio, chosen)
        square = torch.linalg.vecdot(chosen, chosen).clamp_(min=1e-30)
        won = along * along / square
        better = won > gain
        gain = torch.where(better, won, gain)
        scale = torch.where(better, along / square, scale)
    return scale


def _nearest(levels: Tensor) -> Tensor:
    """The code (512,) of the level nearest to each half step: exact, for middles of whole levels are half steps."""
    middles = (torch.arange(_CELLS, device=levels.device) - _CELLS // 2 + 0.5) / 2
    return torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2)


def _cells(half_steps: Tensor) -> Tensor:
    """In which cell of `_nearest` each value lies, in half steps of a level. Overwrites its argument."""
    return half_steps.add_(_CELLS // 2).clamp_(0, _CELLS - 1).to(torch.int32)


def _storable(scales: Tensor) -> Tensor:
    """bfloat16, and finite: the largest float32 values have no scale that reaches them."""
    largest = torch.finfo(torch.bfloat16).max
    return scales.clamp(-largest, largest).to(torch.bfloat16)


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales.float())


def _fit_levels(matrix: Tensor, group: int) -> Tensor:
    """int8 (16,): the levels with the least squared error on a sample of the matrix's groups.

    Lloyd's method (Least squares quantization in PCM, 1982): scales and codes for the levels, then the best
    levels for these, in turn. A level counts with its group's scale squared: the error of the matrix itself.
    """
    sample = _sample(matrix, group)
    extreme = sample.gather(1, sample.abs().argmax(1, keepdim=True))
    largest = extreme.abs().amax() if sample.numel() else extreme.new_zeros(())
    levels = torch.tensor(_START, dtype=torch.float32)
    if not largest.isfinite() or largest == 0:
        return levels.to(torch.int8)
    ratio = sample / torch.where(extreme == 0, 1.0, extreme)
    weights = extreme[:, 0] / largest  # a common factor leaves the levels and keeps the squares in range
    for _ in range(_ROUNDS):
        table = _nearest(levels)
        scale = _best_scale(ratio, levels[table])
        codes = table[_cells(ratio * (2.0 / _divisor(scale))[:, None])].view(-1)
        scale = scale * weights
        wanted = (scale * weights)[:, None] * ratio
        along = torch.bincount(codes, wanted.double().view(-1), 16)
        square = torch.bincount(codes, scale.double().square().repeat_interleave(group), 16)
        means = torch.where(square > 0, along / square.clamp(min=1e-300), levels.double())
        means = means.sort().values
        levels = (means * (_TOP / means.abs().amax())).float()
    return levels.round().to(torch.int8)


def _sample(matrix: Tensor, group: int) -> Tensor:
    """float32 (n, group) on the CPU: groups spread over the matrix by the golden ratio, all of a small one."""
    groups = matrix.reshape(-1, group)
    count = min(groups.shape[0], _SAMPLE // group)
    if count < groups.shape[0]:
        places = torch.arange(count, dtype=torch.float64) * 0.6180339887498949
        groups = groups[((places - places.floor()) * groups.shape[0]).long().to(groups.device)]
    return groups.float().cpu()
