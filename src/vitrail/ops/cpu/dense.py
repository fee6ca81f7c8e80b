"""Products with matrices decoded to floats: plain, 16-bit panels, MAP4, INT8_ROWS. Kernels: native/dense.h.

The product is that of the decoded matrix and differs from PyTorch's only in the order of additions. On one instruction
set a row's result depends neither on other rows nor on the number of threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.checks import check_packed, check_product
from vitrail.ops.cpu import library
from vitrail.ops.cpu.registry import NotTaken, operator, products_fake
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.kernels import kernel_for
from vitrail.ops.weight import Layout, PackedWeight, Weight, dequantize

# native/dense.h's DenseFormat; plain rows of floats are 0.
_ROWS, _FORMATS = 0, {Layout.MAP4: 1, Layout.INT8_ROWS: 2, Layout.PANELS16: 3}
# native/dense.h's Rounding, by the first of two 16-bit dtypes.
_TWICE = {torch.float16: 4, torch.bfloat16: 5}
_STEP = 64  # kDenseStep of native/dense.h
_SCRATCH = 1 << 22  # floats of activations rearranged at once
# Rows from which PyTorch's product is faster on a processor with bfloat16 instructions.
_MANY_ROWS = 16


class Matrix(ctypes.Structure):
    """native/dense.h's DenseMatrix."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("codes", "map", "scales")),
        *((name, ctypes.c_void_p) for name in ("nested_absmax", "nested_map", "nested_offset", "bias", "y")),
        *((name, ctypes.c_int64) for name in ("out", "columns", "group")),
        ("format", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


@lru_cache(maxsize=1)
def _linear_kernel() -> Any:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    return library.function(
        "vt_dense_linear", pointer, ctypes.c_int32, size, ctypes.POINTER(Matrix), size, pointer, size
    )


@lru_cache(maxsize=1)
def _decode_kernel() -> Any:
    size = ctypes.c_int64
    return library.function(
        "vt_dense_decode", ctypes.POINTER(Matrix), size, size, ctypes.c_void_p, ctypes.c_int32
    )


def _has_bf16_instructions() -> bool:
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(hasattr(torch.cpu, test) and getattr(torch.cpu, test)() for test in tests)


_BF16_INSTRUCTIONS = _has_bf16_instructions()  # evaluated at import: a decoding step is compiled


def kernel_is_faster(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> bool:
    """Return whether to use the kernel for x (…, in) and plain matrices: on a CPU, without gradients.

    Not for float32, where PyTorch's product is good, nor for many rows on a processor with bfloat16 instructions.
    """
    tensors = [x, *weights] if bias is None else [x, *weights, bias]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if (
        x.device.type != "cpu"
        or x.dtype not in (torch.bfloat16, torch.float16)
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    if any(tensor.dtype != x.dtype for tensor in tensors):
        return False
    many = x.numel() >= _MANY_ROWS * x.shape[-1]
    return not (x.dtype == torch.bfloat16 and many and _BF16_INSTRUCTIONS)


def products(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Multiply x (rows, in) by the transpose of each packed weight (out_i, in), plus bias: (rows, out_i) in x's dtype.

    Weights of one layout and dtype share one parallel region.
    """
    if len({(weight.layout, weight.dtype) for weight in weights}) > 1 and len(biases) == len(weights):
        pairs = zip(weights, biases, strict=True)
        return [product for weight, bias in pairs for product in products(x, [weight], [bias])]
    return _products(x, weights, biases)


def input_grad(dy: Tensor, weight: PackedWeight) -> Tensor:
    """Multiply dy (…, out) by the decoded weight (out, in): (…, in) in dy's dtype.

    Rows are decoded block by block, and the blocks' products added in float32.
    """
    out, columns = weight.shape
    flat = dy.reshape(-1, out).float()
    total = torch.zeros(flat.shape[0], columns, dtype=torch.float32, device=dy.device)
    step = max(1, _SCRATCH // max(1, columns))
    for first in range(0, out, step):
        last = min(out, first + step)
        block = decode(weight, torch.promote_types(weight.dtype, dy.dtype), slice(first, last)).to(dy.dtype)
        total.addmm_(flat[:, first:last], block.float())
    return total.to(dy.dtype).view(*dy.shape[:-1], columns)


def decode(weight: PackedWeight, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Decode as ops.weight.dequantize, bit for bit, by the kernel where available: (len(rows), in) in `dtype`."""
    start, stop, _ = rows.indices(weight.shape[0])
    if weight.layout not in (Layout.MAP4, Layout.INT8_ROWS):
        return dequantize(weight, dtype, rows)
    return _decode(weight, dtype, start, max(start, stop))


def plain_products(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Multiply x (…, in) by the transpose of plain matrices (out_i, in) of x's dtype, plus biases: (…, out_i) each.

    One parallel region.
    """
    rows = x.reshape(-1, x.shape[-1])
    results = _linear(rows, list(weights), list(biases))
    return [result.view(*x.shape[:-1], result.shape[1]) for result in results]


def _rounding(layout: Layout, stored: torch.dtype, used: torch.dtype) -> int | None:
    """Return native/dense.h's rounding of decoded values of dtype `stored` used as `used`.

    None if the kernel has no such rounding.
    """
    if stored not in FLOATS or used not in FLOATS:
        return None
    steps = [dtype for dtype in (stored, used) if dtype != torch.float32]
    if layout == Layout.PANELS16:  # already bfloat16
        steps = [torch.bfloat16] if torch.float16 not in steps else steps[steps.index(torch.float16) :]
    if len(set(steps)) == 2:
        return _TWICE[steps[0]]
    return library.DTYPES[steps[0] if steps else torch.float32]


def _parts(weight: PackedWeight) -> list[Tensor | None]:
    """Return the tensors in the order of the layout's parts, contiguous."""
    return [None if part is None else part.contiguous() for part in weight.ordered_parts()]


def _matrix(
    layout: Layout, parts: Sequence[Tensor | None], shape: Sequence[int], group: int, rounding: int
) -> Matrix:
    """Return the struct of a packed weight; the tensors must outlive it."""
    at = [None if part is None else part.data_ptr() for part in parts]
    matrix = Matrix(codes=at[0], out=shape[0], columns=shape[1], group=group)
    matrix.format, matrix.type = _FORMATS[layout], rounding
    if layout == Layout.INT8_ROWS:
        matrix.scales = at[1]
    elif layout != Layout.PANELS16:
        matrix.map, matrix.scales, matrix.nested_absmax, matrix.nested_map, matrix.nested_offset = at[1:]
    return matrix


def matrix_of(weight: Weight, dtype: torch.dtype) -> Matrix | None:
    """Return the struct of a weight for activations of `dtype`; None if PyTorch multiplies it.

    The weight must outlive the struct.

    Raises:
        CheckpointError: a packed weight's parts do not fit its shape.
    """
    if isinstance(weight, Tensor):
        fits = weight.dtype == dtype and weight.is_contiguous() and weight.device.type == "cpu"
        return _plain_matrix(weight) if fits else None
    rounding = _rounding(weight.layout, weight.dtype, dtype)
    parts = weight.ordered_parts()
    if rounding is None or any(part is not None and not part.is_contiguous() for part in parts):
        return None
    check_packed(weight)
    return _matrix(weight.layout, parts, weight.shape, weight.group, rounding)


def _run(x: Tensor, matrices: Sequence[Matrix], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Run the kernel on contiguous x (rows, in); biases are None or contiguous, of x's dtype."""
    rows, columns = x.shape
    if not rows:  # nothing to arrange, however wide
        return [x.new_empty(0, matrix.out) for matrix in matrices]
    padded = max(1, -(-columns // _STEP)) * _STEP
    together = max(1, min(rows, max(_SCRATCH // padded, 96)))
    scratch = torch.empty(together * padded, dtype=torch.float32)
    results = [x.new_empty(rows, matrix.out) for matrix in matrices]
    for matrix, bias, y in zip(matrices, biases, results, strict=True):
        matrix.y, matrix.bias = y.data_ptr(), None if bias is None else bias.data_ptr()
    _linear_kernel()(
        x.data_ptr(),
        library.DTYPES[x.dtype],
        rows,
        (Matrix * len(matrices))(*matrices),
        len(matrices),
        scratch.data_ptr(),
        together,
    )
    return results


def decoded_products(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """Multiply by the decoded matrix with PyTorch: the definition."""
    return [
        F.linear(x, dequantize(weight, x.dtype), bias) for weight, bias in zip(weights, biases, strict=True)
    ]


def _products_cpu(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    rounding = _rounding(weights[0].layout, weights[0].dtype, x.dtype)
    forms = {(weight.layout, weight.dtype) for weight in weights}
    if len(forms) > 1 or any(bias is not None and bias.dtype != x.dtype for bias in biases):
        raise NotTaken
    if rounding is None:  # float64: PyTorch's product of a matrix decoded by the kernel
        pairs = zip(weights, biases, strict=True)
        return [F.linear(x, decode(weight, weight.dtype).to(x.dtype), bias) for weight, bias in pairs]
    parts = [_parts(weight) for weight in weights]
    matrices = [
        _matrix(weight.layout, own, weight.shape, weight.group, rounding)
        for weight, own in zip(weights, parts, strict=True)
    ]
    return _run(x.contiguous(), matrices, [None if bias is None else bias.contiguous() for bias in biases])


def _products_on_device(
    x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    return kernel_for(weights[0].layout, x.device, decoded_products)(x, weights, biases)


def _check_products(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> None:
    check_product("dense_products", x, [weight.shape for weight in weights], biases)
    for weight in weights:
        _check_layout(weight)


def _check_layout(weight: PackedWeight) -> None:
    if weight.layout not in _FORMATS:
        raise InputError(f"dense products take {', '.join(_FORMATS)}, not {weight.layout}; use ops.linear.")
    check_packed(weight)


def _linear_oracle(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    return [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _linear_cpu(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    others = [*weights, *(bias for bias in biases if bias is not None)]
    if x.dtype not in FLOATS or any(t.dtype != x.dtype for t in others):
        raise NotTaken
    x, weights = x.contiguous(), [weight.contiguous() for weight in weights]
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    return _run(x, [_plain_matrix(weight) for weight in weights], biases)


def _plain_matrix(weight: Tensor) -> Matrix:
    matrix = Matrix(codes=weight.data_ptr(), out=weight.shape[0], columns=weight.shape[1], group=1)
    matrix.format, matrix.type = _ROWS, library.DTYPES[weight.dtype]
    return matrix


def _check_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
    check_product("dense_linear", x, [tuple(weight.shape) for weight in weights], biases)


def _decode_oracle(weight: PackedWeight, dtype: torch.dtype, first: int, last: int) -> Tensor:
    return dequantize(weight, dtype, slice(first, last))


def _decode_cpu(weight: PackedWeight, dtype: torch.dtype, first: int, last: int) -> Tensor:
    rounding = _rounding(weight.layout, weight.dtype, dtype)
    if rounding is None or weight.layout == Layout.PANELS16:
        raise NotTaken
    parts = _parts(weight)
    matrix = _matrix(weight.layout, parts, weight.shape, weight.group, rounding)
    decoded = torch.empty(last - first, weight.shape[1], dtype=dtype)
    _decode_kernel()(ctypes.byref(matrix), first, last, decoded.data_ptr(), library.DTYPES[dtype])
    return decoded


def _check_decode(weight: PackedWeight, dtype: torch.dtype, first: int, last: int) -> None:
    _check_layout(weight)
    if not 0 <= first <= last <= weight.shape[0]:
        raise InputError(f"rows {first} … {last - 1} do not lie in a matrix of {weight.shape[0]} rows.")


_products = operator(
    "dense_products",
    _products_on_device,
    cpu=_products_cpu,
    fake=products_fake,
    check=_check_products,
)
_linear = operator(
    "dense_linear",
    _linear_oracle,
    cpu=_linear_cpu,
    fake=products_fake,
    check=_check_linear,
)
_decode = operator(
    "dense_decode",
    _decode_oracle,
    cpu=_decode_cpu,
    fake=lambda weight, dtype, first, last: torch.empty(
        last - first, weight.shape[1], dtype=dtype, device=weight.device
    ),
    check=_check_decode,
)
