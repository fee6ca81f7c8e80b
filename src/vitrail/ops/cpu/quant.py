"""Products with matrices in panels of 4 and 8 bits: kernels of native/quant.h, defined in ops/reference/quant_matmul.py."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.ops.cpu import library
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.kernels import kernel_for, register
from vitrail.ops.packing_layout import ROWS, panel_count
from vitrail.ops.reference.quant_matmul import rounded_products
from vitrail.ops.weight import Layout, PackedWeight, dequantize_rows

BITS = {Layout.PANELS4: 4, Layout.PANELS8: 8}  # native/quant.h's QuantKind


def quant_products(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """x (rows, in) through matrices (out_i, in) in PANELS4 or in PANELS8, plus biases: each (rows, out_i) in x's dtype.

    Those of one group size are one call, which rounds x once.
    """
    layout, group = weights[0].layout, weights[0].group
    if any(weight.group != group for weight in weights):
        pairs = zip(weights, biases, strict=True)
        return [quant_products(x, [weight], [bias])[0] for weight, bias in pairs]
    results: list[Tensor] = torch.ops.vitrail.quant_linear(
        x,
        [weight.tensors["codes"] for weight in weights],
        [weight.tensors["scales"] for weight in weights],
        [weight.tensors["levels"] for weight in weights] if layout == Layout.PANELS4 else [],
        list(biases),
        [weight.shape[0] for weight in weights],
        layout.value,
        group,
    )
    return results


def quant_rows(weight: PackedWeight, ids: Tensor) -> Tensor:
    """Rows ids int64 (n,) of a matrix (out, in) in PANELS4 or PANELS8, decoded: (n, in) in the weight's own dtype.

    Raises:
        IndexError: ids are no integers, or (where the kernel runs) one lies outside.
    """
    rows: Tensor = torch.ops.vitrail.quant_rows(
        weight.tensors["codes"],
        weight.tensors["scales"],
        weight.tensors.get("levels"),
        ids,
        weight.shape[0],
        weight.layout.value,
        weight.group,
        weight.dtype,
    )
    return rows


@lru_cache(maxsize=1)
def _kernels() -> tuple[Any, Any]:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    scratch = library.function("vt_quant_scratch", size, size, size)
    if scratch is not None:
        scratch.restype = size
    arguments = (number, pointer, number, size, size, size, pointer, size, pointer)
    return library.function("vt_quant_linear", *arguments), scratch


def _everywhere(
    x: Tensor,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    levels: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    outs: Sequence[int],
    kind: str,
    group: int,
) -> list[Tensor]:
    weights = []
    for i, out in enumerate(outs):
        tensors = {"codes": codes[i], "scales": scales[i]}
        if kind == Layout.PANELS4:
            tensors["levels"] = levels[i]
        weights.append(PackedWeight(Layout(kind), (out, x.shape[1]), group, tensors, x.dtype))
    return rounded_products(x, weights, biases)


def _cpu(
    x: Tensor,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    levels: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    outs: Sequence[int],
    kind: str,
    group: int,
) -> list[Tensor]:
    if library.library() is None or x.dtype not in FLOATS:
        return _everywhere(x, codes, scales, levels, biases, outs, kind, group)
    product, scratch_bytes = _kernels()
    rows, columns = x.shape
    x = x.contiguous()
    scratch = torch.empty(scratch_bytes(rows, columns, group), dtype=torch.uint8)
    results, words, kept = [], [], []
    for i, out in enumerate(outs):
        bias = biases[i]
        if bias is not None:
            bias = bias.float().contiguous()
            kept.append(bias)  # until the call is done
        y = torch.empty(rows, out, dtype=x.dtype)
        table = levels[i] if kind == Layout.PANELS4 else None
        words += quant_words(codes[i], scales[i], table, (out, columns), kind, group, bias, y)
        results.append(y)
    product(
        BITS[Layout(kind)],
        x.data_ptr(),
        library.DTYPES[x.dtype],
        rows,
        columns,
        group,
        (ctypes.c_int64 * len(words))(*words),
        len(outs),
        scratch.data_ptr(),
    )
    return results


def quant_words(
    codes: Tensor,
    scales: Tensor,
    levels: Tensor | None,
    shape: tuple[int, int],
    kind: str,
    group: int,
    bias: Tensor | None = None,
    y: Tensor | None = None,
) -> list[int]:
    """The seven words of native/quant.h's QuantWeight; CheckpointError where the tensors are not what `shape` says.

    bias is float32 and contiguous; all must live as long as the words are used.
    """
    _check(codes, scales, levels, shape, kind, group)
    others = (0 if part is None else part.data_ptr() for part in (levels, bias, y))
    return [codes.data_ptr(), scales.data_ptr(), *others, shape[0], codes.shape[0]]


def _check(
    codes: Tensor, scales: Tensor, levels: Tensor | None, shape: tuple[int, int], kind: str, group: int
) -> None:
    """A kernel reads what the shape says: refuse tensors that are not what it says."""
    panels, columns = panel_count(shape[0]), shape[1]
    code_type = torch.uint8 if kind == Layout.PANELS4 else torch.int8
    if (
        codes.shape != (panels, columns * BITS[Layout(kind)] // 32, 4 * ROWS)
        or scales.shape != (panels, columns // group, ROWS)
        or columns % group
        or group not in (32, 64, 128)
        or codes.dtype != code_type
        or scales.dtype != torch.bfloat16
        or not (codes.is_contiguous() and scales.is_contiguous())
        or (levels is None) != (kind == Layout.PANELS8)
        or (levels is not None and (levels.shape != (16,) or levels.dtype != torch.int8))
        or (levels is not None and not levels.is_contiguous())
    ):
        raise CheckpointError(
            f"a {kind} matrix of {shape[0]} rows, multiplied with {columns} columns in groups of {group}, has codes "
            f"{codes.dtype} {tuple(codes.shape)} and scales {scales.dtype} {tuple(scales.shape)}, which do not fit."
        )


def _linear(x: Tensor, *arguments: Any) -> list[Tensor]:
    kind = arguments[5]
    return kernel_for(kind, x.device, _everywhere)(x, *arguments)


def _fake(
    x: Tensor,
    codes: Sequence[Tensor],
    scales: Sequence[Tensor],
    levels: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    outs: Sequence[int],
    kind: str,
    group: int,
) -> list[Tensor]:
    return [x.new_empty(x.shape[0], out) for out in outs]


@lru_cache(maxsize=1)
def _rows_kernel() -> Any:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found = library.function("vt_quant_rows", number, pointer, size, size, pointer, size, pointer, number)
    found.restype = number
    return found


def _rows_everywhere(
    codes: Tensor,
    scales: Tensor,
    levels: Tensor | None,
    ids: Tensor,
    out: int,
    kind: str,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    tensors = {"codes": codes, "scales": scales}
    if levels is not None:
        tensors["levels"] = levels
    return dequantize_rows(
        PackedWeight(Layout(kind), (out, _columns(codes, kind)), group, tensors, dtype), ids
    )


def _rows_cpu(
    codes: Tensor,
    scales: Tensor,
    levels: Tensor | None,
    ids: Tensor,
    out: int,
    kind: str,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    if library.library() is None or dtype not in FLOATS or ids.dtype not in (torch.int64, torch.int32):
        return _rows_everywhere(codes, scales, levels, ids, out, kind, group, dtype)
    columns = _columns(codes, kind)
    words = quant_words(codes, scales, levels, (out, columns), kind, group)
    ids = ids.to(torch.int64).contiguous()
    y = torch.empty(len(ids), columns, dtype=dtype)
    outside = _rows_kernel()(
        BITS[Layout(kind)],
        (ctypes.c_int64 * len(words))(*words),
        columns,
        group,
        ids.data_ptr(),
        len(ids),
        y.data_ptr(),
        library.DTYPES[dtype],
    )
    if outside:
        raise IndexError(
            f"ids of a table of {out} rows lie in 0 … {out - 1}; got {int(ids.min())} … {int(ids.max())}."
        )
    return y


def _columns(codes: Tensor, kind: str) -> int:
    return codes.shape[1] * 32 // BITS[Layout(kind)]


def _rows_fake(
    codes: Tensor,
    scales: Tensor,
    levels: Tensor | None,
    ids: Tensor,
    out: int,
    kind: str,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(ids.shape[0], _columns(codes, kind), dtype=dtype)


library.define(
    "quant_rows(Tensor codes, Tensor scales, Tensor? levels, Tensor ids, SymInt out, str kind, int group, "
    "ScalarType dtype) -> Tensor",
    cpu=_rows_cpu,
    everywhere=_rows_everywhere,
    fake=_rows_fake,
)
library.define(
    "quant_linear(Tensor x, Tensor[] codes, Tensor[] scales, Tensor[] levels, Tensor?[] biases, SymInt[] outs, "
    "str kind, int group) -> Tensor[]",
    cpu=_linear,
    everywhere=_linear,
    fake=_fake,
)
for _layout in BITS:
    register(_layout, "cpu", _cpu)
