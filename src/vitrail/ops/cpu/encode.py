"""Encoding as operators: kernels from native/encode.h, definitions in ops/reference/encode.py.

Codes and scales are the same bits everywhere. Sums of errors are the same on all instruction sets and numbers of
threads; the definition adds them in PyTorch's order.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.ops import memory
from vitrail.ops.cpu import library
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.packing_layout import ROWS, panel_count
from vitrail.ops.reference import encode as reference_encode
from vitrail.ops.weight import Layout, PackedWeight, integer_step

_POINTER, _SIZE, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
# As native/encode.h counts them.
_BITS = {Layout.PANELS4: 4, Layout.PANELS8: 8, Layout.MAP4: 0}
_BLOCK = 32  # values that kernels code together: they take groups of a multiple
_GROUPS = (32, 64, 128)  # of panels
_TOGETHER = 8  # groups that a kernel fits at once


def encode_own(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix (out, in) as PANELS8, or as PANELS4 with int8 `levels` (16,).

    `group` divides `in`. A group that holds a value that is not finite has the scale NaN.
    """
    found: tuple[Tensor, Tensor] = torch.ops.vitrail.encode_own(matrix, kind, levels, group)
    return found


def encode_fit(ratio: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    """The sums (2, 16) of one round of fitting levels: ops/encode.encode_fit."""
    sums: Tensor = torch.ops.vitrail.encode_fit(ratio, weights, levels)
    return sums


def encode_map4(values: Tensor, quant_map: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Floats (n,) as packed codes of a map (16,), uint8 (ceil(n/2),), and absmax float32 (ceil(n/group),)."""
    found: tuple[Tensor, Tensor] = torch.ops.vitrail.encode_map4(values, quant_map, group)
    return found


def squared_error(matrix: Tensor, packed: PackedWeight) -> tuple[float, float]:
    """Σ (decoded - value)² and Σ value² of a matrix and what was packed of it, added in float64."""
    tensors = packed.tensors
    if packed.layout not in _BITS or "nested_map" in tensors:
        sums = reference_encode.squared_error(matrix, packed)
    else:
        flat = packed.layout == Layout.MAP4
        scales, table = (
            tensors["absmax" if flat else "scales"],
            tensors.get("quant_map" if flat else "levels"),
        )
        sums = torch.ops.vitrail.encode_error(
            matrix, packed.layout.value, tensors["codes"], scales, table, packed.group, packed.dtype
        )
    error, norm = sums.tolist()
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
    """Whether kernels can read these floats as they lie: rows that are dense in themselves."""
    dense = matrix.stride(-1) == 1 and min(matrix.stride()) >= 0
    return library.library() is not None and matrix.dtype in FLOATS and dense and group % _BLOCK == 0


def _own_cpu(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    rows, columns = matrix.shape
    fits = group in _GROUPS and columns % group == 0 and matrix.numel() > 0 and _has_table(kind, levels)
    if not fits or not _takes(matrix, group):
        return reference_encode.encode_own(matrix, kind, levels, group)
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


def _fit_cpu(ratio: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    count, group = ratio.shape
    types = (ratio.dtype, weights.dtype, levels.dtype)
    fits = (
        group in _GROUPS
        and types == (torch.float32,) * 3
        and weights.shape == ratio.shape
        and levels.shape == (16,)
    )
    if not fits or not _takes(ratio, group):
        return reference_encode.encode_fit(ratio, weights, levels)
    ratio, weights, levels = ratio.contiguous(), weights.contiguous(), levels.contiguous()
    room = -(-count // _TOGETHER) * _TOGETHER
    codes = torch.empty(room * group, dtype=torch.uint8, device="cpu")
    scales = torch.empty(room, dtype=torch.float32, device="cpu")
    sums = torch.empty(2, 16, dtype=torch.float64, device="cpu")
    addresses = [tensor.data_ptr() for tensor in (levels, codes, scales, sums)]
    _fit_kernel()(ratio.data_ptr(), weights.data_ptr(), count, group, *addresses)
    return sums


def _map4_cpu(values: Tensor, quant_map: Tensor, group: int) -> tuple[Tensor, Tensor]:
    count = values.numel()
    if not count or quant_map.shape != (16,) or not _takes(values, group):
        return reference_encode.encode_map4(values, quant_map, group)
    bounds, order = reference_encode.map_bounds(quant_map.float())
    codes = memory.empty(((count + 1) // 2,), torch.uint8)
    absmax = memory.empty((-(-count // group),), torch.float32)
    addresses = [tensor.data_ptr() for tensor in (bounds, order, codes, absmax)]
    _map4_kernel()(values.data_ptr(), library.DTYPES[values.dtype], count, group, *addresses)
    return codes, absmax


def _error_everywhere(
    matrix: Tensor,
    kind: str,
    codes: Tensor,
    scales: Tensor,
    table: Tensor | None,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    flat = kind == Layout.MAP4
    tensors = {"codes": codes, "absmax" if flat else "scales": scales}
    if table is not None:
        tensors["quant_map" if flat else "levels"] = table
    packed = PackedWeight(Layout(kind), (matrix.shape[0], matrix.shape[1]), group, tensors, dtype)
    return reference_encode.squared_error(matrix, packed)


def _error_cpu(
    matrix: Tensor,
    kind: str,
    codes: Tensor,
    scales: Tensor,
    table: Tensor | None,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    rows, columns = matrix.shape
    bits = _BITS[Layout(kind)]
    fits = _takes(matrix, group) and dtype in FLOATS and (bits > 0 or matrix.is_contiguous())
    if not fits or not _has_table(kind, table) or not _matches(bits, (rows, columns), group, codes, scales):
        return _error_everywhere(matrix, kind, codes, scales, table, group, dtype)
    step = integer_step(Layout.PANELS4) if kind == Layout.PANELS4 else 1.0
    decoded = None if table is None else (table.float() * step).contiguous()
    shape = (rows, matrix.stride(0), columns, group) if bits else (1, matrix.numel(), matrix.numel(), group)
    kernel, pieces = _error_kernels()
    sums = torch.empty(pieces(bits, shape[0], shape[2], group), 2, dtype=torch.float64)
    kernel(
        bits,
        matrix.data_ptr(),
        library.DTYPES[matrix.dtype],
        *shape,
        None if decoded is None else decoded.data_ptr(),
        library.DTYPES[dtype],
        codes.data_ptr(),
        scales.data_ptr(),
        sums.data_ptr(),
    )
    return sums.sum(0)


def _has_table(kind: str, table: Tensor | None) -> bool:
    """Whether there are sixteen values to look up, where a kind looks them up."""
    return kind == Layout.PANELS8 or (table is not None and table.shape == (16,))


def _matches(bits: int, shape: tuple[int, int], group: int, codes: Tensor, scales: Tensor) -> bool:
    """Whether codes and scales are what a kernel will take them for."""
    (rows, columns), count = shape, shape[0] * shape[1]
    types = (torch.uint8, torch.float32)
    wanted: tuple[tuple[int, ...], tuple[int, ...]] = ((count + 1) // 2,), (-(-count // group),)
    if bits:
        if columns % group:
            return False
        types = torch.uint8 if bits == 4 else torch.int8, torch.bfloat16
        height = panel_count(rows)
        wanted = (height, columns * bits // 32, 4 * ROWS), (height, columns // group, ROWS)
    dense = codes.is_contiguous() and scales.is_contiguous()
    return dense and (codes.shape, scales.shape) == wanted and (codes.dtype, scales.dtype) == types


# --- registration ---------------------------------------------------------------------------------------------------


def _own_fake(matrix: Tensor, kind: str, levels: Tensor | None, group: int) -> tuple[Tensor, Tensor]:
    codes, scales = reference_encode.panel_shapes(matrix, kind, group)
    code_type = torch.int8 if kind == Layout.PANELS8 else torch.uint8
    return matrix.new_empty(codes, dtype=code_type), matrix.new_empty(scales, dtype=torch.bfloat16)


def _fit_fake(ratio: Tensor, weights: Tensor, levels: Tensor) -> Tensor:
    return ratio.new_empty(2, 16, dtype=torch.float64)


def _map4_fake(values: Tensor, quant_map: Tensor, group: int) -> tuple[Tensor, Tensor]:
    count = values.shape[0]
    codes = values.new_empty((count + 1) // 2, dtype=torch.uint8)
    return codes, values.new_empty((count + group - 1) // group, dtype=torch.float32)


def _error_fake(
    matrix: Tensor,
    kind: str,
    codes: Tensor,
    scales: Tensor,
    table: Tensor | None,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(2, dtype=torch.float64, device="meta" if matrix.is_meta else "cpu")


library.define(
    "encode_own(Tensor matrix, str kind, Tensor? levels, int group) -> (Tensor, Tensor)",
    cpu=_own_cpu,
    everywhere=reference_encode.encode_own,
    fake=_own_fake,
)
library.define(
    "encode_fit(Tensor ratio, Tensor weights, Tensor levels) -> Tensor",
    cpu=_fit_cpu,
    everywhere=reference_encode.encode_fit,
    fake=_fit_fake,
)
library.define(
    "encode_map4(Tensor values, Tensor quant_map, int group) -> (Tensor, Tensor)",
    cpu=_map4_cpu,
    everywhere=reference_encode.encode_map4,
    fake=_map4_fake,
)
library.define(
    "encode_error(Tensor matrix, str kind, Tensor codes, Tensor scales, Tensor? table, int group, ScalarType dtype) "
    "-> Tensor",
    cpu=_error_cpu,
    everywhere=_error_everywhere,
    fake=_error_fake,
)
