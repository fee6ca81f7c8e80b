"""Products with 4- and 8-bit panels. Kernels: native/quant.h; definition: ops/reference/quant_matmul.py."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.checks import INTEGERS, check_packed, check_product, misfit
from vitrail.ops.cpu import library
from vitrail.ops.cpu.registry import NotTaken, operator, products_fake
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.kernels import kernel_for
from vitrail.ops.packing_layout import panel_count
from vitrail.ops.reference.quant_matmul import rounded_products
from vitrail.ops.weight import Layout, PackedWeight, dequantize_rows

BITS = {Layout.PANELS4: 4, Layout.PANELS8: 8}  # native/quant.h's QuantKind
_GROUPS = (32, 64, 128)


def quant_products(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """Multiply x (rows, in) by matrices (out_i, in) in PANELS4 or PANELS8, plus biases: each (rows, out_i) in x's dtype.

    Weights of one group size are one call, which rounds x once.
    """
    if len({weight.group for weight in weights}) > 1 and len(biases) == len(weights):
        pairs = zip(weights, biases, strict=True)
        return [quant_products(x, [weight], [bias])[0] for weight, bias in pairs]
    return _linear(x, weights, biases)


def quant_rows(weight: PackedWeight, ids: Tensor) -> Tensor:
    """Decode rows ids int64 (n,) of a matrix (out, in) in PANELS4 or PANELS8: (n, in) in the weight's dtype.

    Raises:
        IndexError: ids are not integers, or (on a CPU) out of range.
    """
    return _rows(weight, ids)


@lru_cache(maxsize=1)
def _kernels() -> tuple[Any, Any]:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    scratch = library.function("vt_quant_scratch", size, size, size)
    if scratch is not None:
        scratch.restype = size
    arguments = (number, pointer, number, size, size, size, pointer, size, pointer)
    return library.function("vt_quant_linear", *arguments), scratch


def takes(weight: PackedWeight) -> bool:
    """Return whether the kernels can read a matrix in panels in place."""
    return weight.group in _GROUPS and all(part.is_contiguous() for part in weight.tensors.values())


def quant_words(weight: PackedWeight, bias: Tensor | None = None, y: Tensor | None = None) -> list[int]:
    """Return the seven words of native/quant.h's QuantWeight for a checked weight that the kernels support.

    bias is float32 and contiguous; all tensors must outlive the words.
    """
    codes, scales, levels = (weight.tensors.get(name) for name in ("codes", "scales", "levels"))
    others = (0 if part is None else part.data_ptr() for part in (codes, scales, levels, bias, y))
    return [*others, weight.shape[0], panel_count(weight.shape[0])]


def _linear_cpu(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    if x.dtype not in FLOATS or not all(takes(weight) for weight in weights):
        raise NotTaken
    product, scratch_bytes = _kernels()
    (rows, columns), layout, group = x.shape, weights[0].layout, weights[0].group
    x = x.contiguous()
    scratch = torch.empty(scratch_bytes(rows, columns, group), dtype=torch.uint8)
    results = [torch.empty(rows, weight.shape[0], dtype=x.dtype) for weight in weights]
    plus = [
        None if bias is None else bias.float().contiguous() for bias in biases
    ]  # kept alive until the call returns
    words = [word for triple in zip(weights, plus, results, strict=True) for word in quant_words(*triple)]
    product(
        BITS[layout],
        x.data_ptr(),
        library.DTYPES[x.dtype],
        rows,
        columns,
        group,
        (ctypes.c_int64 * len(words))(*words),
        len(weights),
        scratch.data_ptr(),
    )
    return results


def _linear_on_device(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    return kernel_for(weights[0].layout, x.device, rounded_products)(x, weights, biases)


def _check_linear(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> None:
    check_product("quant_linear", x, [weight.shape for weight in weights], biases)
    for weight in weights:
        _check_layout(weight)
    if len({(weight.layout, weight.group) for weight in weights}) > 1:
        raise InputError("quant_linear takes matrices of one layout and group; call it for each of them.")


def _check_layout(weight: PackedWeight) -> None:
    if weight.layout not in BITS:
        raise InputError(
            f"products of rounded rows take {' or '.join(BITS)}, not {weight.layout}; use ops.linear."
        )
    check_packed(weight)


@lru_cache(maxsize=1)
def _rows_kernel() -> Any:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    found = library.function("vt_quant_rows", number, pointer, size, size, pointer, size, pointer, number)
    found.restype = number
    return found


def _rows_oracle(weight: PackedWeight, ids: Tensor) -> Tensor:
    if ids.device.type == "cpu" and ids.numel() and ids.dtype in INTEGERS:
        _refuse_outside(ids, weight.shape[0])
    return dequantize_rows(weight, ids)


def _refuse_outside(ids: Tensor, count: int) -> None:
    first, last = int(ids.min()), int(ids.max())
    if first < 0 or last >= count:
        raise IndexError(f"ids of a table of {count} rows lie in 0 … {count - 1}; got {first} … {last}.")


def _rows_cpu(weight: PackedWeight, ids: Tensor) -> Tensor:
    if weight.dtype not in FLOATS or ids.dtype not in INTEGERS or not takes(weight):
        raise NotTaken
    (out, columns), words = weight.shape, quant_words(weight)
    ids = ids.to(torch.int64).contiguous()
    y = torch.empty(len(ids), columns, dtype=weight.dtype)
    outside = _rows_kernel()(
        BITS[weight.layout],
        (ctypes.c_int64 * len(words))(*words),
        columns,
        weight.group,
        ids.data_ptr(),
        len(ids),
        y.data_ptr(),
        library.DTYPES[weight.dtype],
    )
    if outside:
        _refuse_outside(ids, out)
    return y


def _check_rows(weight: PackedWeight, ids: Tensor) -> None:
    _check_layout(weight)
    if ids.dim() != 1:
        raise misfit("quant_rows", "ids (n,)", ids=ids)


_linear = operator(
    "quant_linear",
    _linear_on_device,
    cpu=_linear_cpu,
    fake=products_fake,
    check=_check_linear,
)
_rows = operator(
    "quant_rows",
    _rows_oracle,
    cpu=_rows_cpu,
    fake=lambda weight, ids: ids.new_empty(ids.shape[0], weight.shape[1], dtype=weight.dtype),
    check=_check_rows,
)
