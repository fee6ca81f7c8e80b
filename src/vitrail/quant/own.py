"""Vitrail's own formats: a matrix becomes q4, q8 or bf16 panels. Codes and scales are found in ops/reference/encode.py.

q4 takes 4.5 bits a weight with groups of 32: sixteen levels per matrix, fitted to the matrix itself, and one
bfloat16 scale per group. q8 takes 8.5 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError
from vitrail.ops import packing_layout
from vitrail.ops.cpu import encode as cpu_encode
from vitrail.ops.reference.encode import row_blocks
from vitrail.ops.weight import OWN_KINDS, PackedWeight, dequantize

GROUPS = (32, 64, 128)
_TOP = 63  # largest level: products of pairs then fit the 16-bit sums of older instruction sets
_SAMPLE = 1 << 18  # elements that the levels are fitted to
_ROUNDS = 12  # of fitting; more changes the third digit of the error
# Levels fitted to normally distributed values: where fitting begins, and what a matrix of zeros gets.
_START = (-63, -46, -35, -27, -20, -14, -8, -2, 3, 9, 14, 20, 27, 34, 44, 56)


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
        codes = packing_layout.pack_pairs(matrix.to(torch.bfloat16))
        return PackedWeight(kind, shape, 1, {"codes": codes}, dtype)
    levels = _fit_levels(matrix, group).to(matrix.device) if kind == "q4" else None
    codes, scales = cpu_encode.encode_own(matrix, kind, levels, group)
    if not scales.isfinite().all():
        raise CheckpointError(f"{name} holds a value that is not finite; it cannot be stored as {kind}.")
    tensors = {"codes": codes, "scales": scales}
    if levels is not None:
        tensors["levels"] = levels
    return PackedWeight(kind, shape, group, tensors, dtype)


def relative_error(weight: Tensor, packed: PackedWeight) -> float:
    """‖decoded − weight‖ / ‖weight‖ (Frobenius) without the rounding to the result's dtype; 0 for zeros."""
    exact = PackedWeight(packed.kind, packed.shape, packed.group, packed.tensors, torch.float32)
    error = norm = 0.0
    for first, last, rows in row_blocks(weight.detach()):
        stop = min(last * packing_layout.ROWS, packed.shape[0])
        decoded = dequantize(exact, torch.float32, slice(first * packing_layout.ROWS, stop))
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
        along, square = cpu_encode.encode_fit(ratio, weights, levels)
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
