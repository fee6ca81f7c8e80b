"""Quantising operators. Kernels: native/encode.h; definitions: ops/reference/encode.py.

Codes and scales are the same bits everywhere. Error sums are the same on all instruction sets and thread counts; the
definition adds them in PyTorch's order.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.ops import memory
from vitrail.ops.checks import check_packed, misfit
from vitrail.ops.cpu import library
from vitrail.ops.cpu.registry import NotTaken, operator
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.reference import encode as reference_encode
from vitrail.ops.weight import Layout, PackedWeight, integer_step

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
# Numbering of native/encode.h.
_BITS = {Layout.PANELS4: 4, Layout.PANELS8: 8, Layout.MAP4: 0}
_BLOCK = 32  # values encoded together: group sizes are multiples
_GROUPS = (32, 64, 128)  # group sizes of panels
_TOGETHER = 8  # groups fitted together by a kernel


def squared_error(matrix: Tensor, packed: PackedWeight) -> tuple[float, float]:
    """Return Σ (decoded - value)² and Σ value² of a matrix and its packed form, summed in float64."""
    error, norm = _error(matrix, packed).tolist()
    return error, norm


# --- kernels --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _own_kernel() -> Any:
    sizes = [_SIZE] * 4
    return library.function("vt_encode_own", _NUMBER, _POINTER, _NUMBER, *sizes, *[_POINTER] * 3)


@lru_cache(maxsize=1)
def _fit_kernel() -> Any:
    return library.function("vt_encode_fit", _POINTER, _POINTER, _SIZE, _SIZE, *[_POINTER] * 4)


@lru_cache(maxsize=1)
def _map4_kernel() -> Any:
    return library.function("vt_encode_map4", _POINTER, _NUMBER, _SIZE, _SIZE, *[_POINTER] * 4)


@lru_cache(maxsize=1)
def _error_kernels() -> tuple[Any, Any]:
    pieces = library.function("vt_encode_pieces", _NUMBER, _SIZE, _SIZE, _SIZE)
    if pieces is not None:
        pieces.restype = _SIZE
    arguments = [_NUMBER, _POINTER, _NUMBER, *[_SIZE] * 4, _POINTER, _NUMBER, *[_POINTER] * 3]
    return library.function("vt_encode_error", *arguments), pieces


def _takes(matrix: Tensor, group: int) -> bool:
    """Return whether kernels can read this matrix in place: rows without gaps."""
    dense = matrix.stride(-1) == 1 and min(matrix.stride()) >= 0
    return matrix.dtype in FLOATS and dense and group % _BLOCK == 0


def _own_cpu(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    if group not in _GROUPS or not matrix.numel() or not _takes(matrix, group):
        raise NotTaken
    rows, columns = matrix.shape
    codes, scales = reference_encode.new_panels(matrix, kind, group)
    wide = None if levels is None else levels.float().contiguous()
    _own_kernel()(
        _BITS[Layout(kind)],
        matrix.data_ptr(),
        library.DTYPES[matrix.dtype],
        rows,
        matrix.stride(0),
        columns,
        group,
        None if wide is None else wide.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
    )
    return codes, scales


def _check_own(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> None:
    wanted = {Layout.PANELS4: (16,), Layout.PANELS8: None}
    table = kind in wanted and wanted[Layout(kind)] == (None if levels is None else levels.shape)
    if matrix.dim() != 2 or group < 1 or not table or matrix.shape[1] % group or matrix.shape[1] % 8:
        expected = (
            f"a matrix in groups of {group} for {kind}, with 16 levels for panels4 and none for panels8"
        )
        raise misfit("encode_own", expected, matrix=matrix, levels=levels)


def _fit_cpu(ratio: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    count, group = ratio.shape
    if group not in _GROUPS or (ratio.dtype, weights.dtype, levels.dtype) != (torch.float32,) * 3:
        raise NotTaken
    ratio, weights, levels = ratio.contiguous(), weights.contiguous(), levels.contiguous()
    padded = -(-count // _TOGETHER) * _TOGETHER
    codes = torch.empty(padded * group, dtype=torch.uint8, device="cpu")
    scales = torch.empty(padded, dtype=torch.float32, device="cpu")
    sums = torch.empty(2, 16, dtype=torch.float64, device="cpu")
    addresses = [tensor.data_ptr() for tensor in (levels, codes, scales, sums)]
    _fit_kernel()(ratio.data_ptr(), weights.data_ptr(), count, group, *addresses)
    return sums


def _check_fit(ratio: Tensor, weights: Tensor, levels: Tensor) -> None:
    if ratio.dim() != 2 or weights.shape != ratio.shape[:1] or levels.shape != (16,):
        expected = "ratio (n, group), weights (n,) and 16 levels"
        raise misfit("encode_fit", expected, ratio=ratio, weights=weights, levels=levels)


def _map4_cpu(values: Tensor, quant_map: Tensor, group: int) -> tuple[Tensor, Tensor]:
    count = values.numel()
    if not count or not _takes(values, group):
        raise NotTaken
    bounds, order = reference_encode.map_bounds(quant_map.float())
    codes = memory.empty(((count + 1) // 2,), torch.uint8)
    absmax = memory.empty((-(-count // group),), torch.float32)
    addresses = [tensor.data_ptr() for tensor in (bounds, order, codes, absmax)]
    _map4_kernel()(values.data_ptr(), library.DTYPES[values.dtype], count, group, *addresses)
    return codes, absmax


def _check_map4(values: Tensor, quant_map: Tensor, group: int) -> None:
    if values.dim() != 1 or quant_map.shape != (16,) or group < 1:
        expected = f"values (n,) in groups of at least 1, not {group}, and a map (16,)"
        raise misfit("encode_map4", expected, values=values, quant_map=quant_map)


def _error_cpu(matrix: Tensor, packed: PackedWeight) -> Tensor:
    bits, group, (rows, columns) = _BITS.get(packed.layout), packed.group, packed.shape
    own = packed.layout != Layout.MAP4
    parts = packed.tensors
    if bits is None or "nested_map" in parts or not all(part.is_contiguous() for part in parts.values()):
        raise NotTaken
    whole = group in _GROUPS if own else matrix.is_contiguous()
    if not whole or not _takes(matrix, group) or packed.dtype not in FLOATS:
        raise NotTaken
    scales, table = parts["scales" if own else "absmax"], parts.get("levels" if own else "quant_map")
    decoded = (
        None
        if table is None
        else (table.float() * (integer_step(Layout.PANELS4) if own else 1.0)).contiguous()
    )
    shape = (rows, matrix.stride(0), columns, group) if own else (1, matrix.numel(), matrix.numel(), group)
    kernel, pieces = _error_kernels()
    sums = torch.empty(pieces(bits, shape[0], shape[2], group), 2, dtype=torch.float64)
    kernel(
        bits,
        matrix.data_ptr(),
        library.DTYPES[matrix.dtype],
        *shape,
        None if decoded is None else decoded.data_ptr(),
        library.DTYPES[packed.dtype],
        parts["codes"].data_ptr(),
        scales.data_ptr(),
        sums.data_ptr(),
    )
    return sums.sum(0)


def _check_error(matrix: Tensor, packed: PackedWeight) -> None:
    if matrix.shape != packed.shape:
        raise misfit("encode_error", f"the floats {packed.shape} of what was packed", matrix=matrix)
    check_packed(packed)


# --- registration ---------------------------------------------------------------------------------------------------


def _own_fake(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    _check_own(matrix, kind, levels, group)
    codes, scales = reference_encode.panel_shapes(matrix, kind, group)
    code_type = torch.int8 if kind == Layout.PANELS8 else torch.uint8
    return matrix.new_empty(codes, dtype=code_type), matrix.new_empty(scales, dtype=torch.bfloat16)


def _map4_fake(values: Tensor, quant_map: Tensor, group: int) -> tuple[Tensor, Tensor]:
    _check_map4(values, quant_map, group)
    count = values.shape[0]
    codes = values.new_empty((count + 1) // 2, dtype=torch.uint8)
    return codes, values.new_empty((count + group - 1) // group, dtype=torch.float32)


# Documented at their definitions.
encode_own = operator(
    "encode_own", reference_encode.encode_own, cpu=_own_cpu, fake=_own_fake, check=_check_own
)
encode_fit = operator(
    "encode_fit",
    reference_encode.encode_fit,
    cpu=_fit_cpu,
    fake=lambda ratio, weights, levels: ratio.new_empty(2, 16, dtype=torch.float64),
    check=_check_fit,
)
encode_map4 = operator(
    "encode_map4", reference_encode.encode_map4, cpu=_map4_cpu, fake=_map4_fake, check=_check_map4
)
_error = operator(
    "encode_error",
    reference_encode.squared_error,
    cpu=_error_cpu,
    fake=lambda matrix, packed: torch.empty(
        2, dtype=torch.float64, device="meta" if matrix.is_meta else "cpu"
    ),
    check=_check_error,
)
