"""Operators with a matrix of floats: stored plainly, in 16-bit panels, in MAP4 or INT8_ROWS. Kernels from native/dense.h.

The product is that of the decoded matrix, so it differs from PyTorch's in the order of additions only. Within one
instruction set a row's result depends neither on the rows beside it nor on the threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.ops.cpu import library
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.kernels import kernel_for, register
from vitrail.ops.weight import Layout, PackedWeight, Weight, dequantize

# native/dense.h's DenseFormat; plain rows of floats are 0.
_ROWS, _FORMATS = 0, {Layout.MAP4: 1, Layout.INT8_ROWS: 2, Layout.PANELS16: 3}
_STEP = 64  # kStep
_ROOM = 1 << 22  # floats of activations that are arranged at once
# Rows from which a processor with instructions for bfloat16 is faster with PyTorch's own product.
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


_BF16_INSTRUCTIONS = _has_bf16_instructions()  # looked up once: a step of decoding is compiled


def kernel_is_faster(x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None) -> bool:
    """Whether the kernel should multiply x (…, in) and plain matrices: on a CPU, and nothing asks for a gradient.

    Not with float32, where PyTorch's own product is good, nor with many rows where the processor multiplies
    bfloat16 itself.
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
    """x (rows, in) times each packed weight (out_i, in) transposed, plus its bias: (rows, out_i) in x's dtype.

    Weights of one layout and type are one parallel region.
    """
    first = weights[0]
    if any((weight.layout, weight.dtype) != (first.layout, first.dtype) for weight in weights):
        pairs = zip(weights, biases, strict=True)
        return [product for weight, bias in pairs for product in products(x, [weight], [bias])]
    results: list[Tensor] = torch.ops.vitrail.dense_products(
        x,
        first.layout.value,
        [part for weight in weights for part in weight.ordered_parts()],
        [weight.shape[0] for weight in weights],
        [weight.group for weight in weights],
        first.dtype,
        list(biases),
    )
    return results


def input_grad(dy: Tensor, weight: PackedWeight) -> Tensor:
    """dy (…, out) times the decoded weight (out, in): (…, in) in dy's dtype.

    Blocks of rows are decoded, one at a time, and their products added in float32.
    """
    out, columns = weight.shape
    flat = dy.reshape(-1, out).float()
    total = torch.zeros(flat.shape[0], columns, dtype=torch.float32, device=dy.device)
    step = max(1, _ROOM // max(1, columns))
    for first in range(0, out, step):
        last = min(out, first + step)
        block = decode(weight, torch.promote_types(weight.dtype, dy.dtype), slice(first, last)).to(dy.dtype)
        total.addmm_(flat[:, first:last], block.float())
    return total.to(dy.dtype).view(*dy.shape[:-1], columns)


def decode(weight: PackedWeight, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """As ops.weight.dequantize, bit for bit, by the kernel where there is one: (len(rows), in) in `dtype`."""
    start, stop, _ = rows.indices(weight.shape[0])
    if weight.layout not in (Layout.MAP4, Layout.INT8_ROWS):
        return dequantize(weight, dtype, rows)
    decoded: Tensor = torch.ops.vitrail.dense_decode(
        weight.layout.value,
        weight.ordered_parts(),
        list(weight.shape),
        weight.group,
        weight.dtype,
        dtype,
        start,
        max(start, stop),
    )
    return decoded


def plain_products(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """x (…, in) times plain matrices (out_i, in) of x's dtype transposed, plus their biases: (…, out_i) each.

    One parallel region.
    """
    rows = x.reshape(-1, x.shape[-1])
    results = torch.ops.vitrail.dense_linear(rows, list(weights), list(biases))
    return [result.view(*x.shape[:-1], result.shape[1]) for result in results]


def _rounding(kind: str, stored: torch.dtype, used: torch.dtype) -> torch.dtype | None:
    """What the kernel rounds decoded values to when they are used as `used`; None where one rounding is not enough."""
    if kind == Layout.PANELS16:
        exact = (torch.float32, torch.bfloat16)
        return torch.bfloat16 if stored in exact and used in exact else None
    if used in (torch.float32, stored) and stored in FLOATS:
        return stored
    return used if stored == torch.float32 and used in FLOATS else None


def _matrix(
    kind: str, parts: Sequence[Tensor | None], shape: Sequence[int], group: int, rounding: torch.dtype
) -> Matrix:
    """The fields for a packed weight; the tensors must live as long as it does."""
    at = [None if part is None else part.data_ptr() for part in parts]
    matrix = Matrix(codes=at[0], out=shape[0], columns=shape[1], group=group)
    matrix.format, matrix.type = _FORMATS[Layout(kind)], library.DTYPES[rounding]
    if kind == Layout.INT8_ROWS:
        matrix.scales = at[1]
    elif kind != Layout.PANELS16:
        matrix.map, matrix.scales, matrix.nested_absmax, matrix.nested_map, matrix.nested_offset = at[1:]
    return matrix


def matrix_of(weight: Weight, dtype: torch.dtype) -> Matrix | None:
    """The fields for a weight that activations of `dtype` meet; None where that is PyTorch's work.

    The weight must live as long as the fields are used.
    """
    if isinstance(weight, Tensor):
        fits = weight.dtype == dtype and weight.is_contiguous() and weight.device.type == "cpu"
        return _plain_matrix(weight) if fits else None
    rounding = _rounding(weight.layout, weight.dtype, dtype)
    parts = weight.ordered_parts()
    if rounding is None or any(part is not None and not part.is_contiguous() for part in parts):
        return None
    return _matrix(weight.layout, parts, weight.shape, weight.group, rounding)


def _run(x: Tensor, matrices: Sequence[Matrix], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """The kernel on contiguous x (rows, in); biases are None or contiguous, of x's dtype."""
    rows, columns = x.shape
    padded = max(1, -(-columns // _STEP)) * _STEP
    together = max(1, min(rows, max(_ROOM // padded, 96)))
    room = torch.empty(together * padded, dtype=torch.float32)
    results = [x.new_empty(rows, matrix.out) for matrix in matrices]
    for matrix, bias, y in zip(matrices, biases, results, strict=True):
        matrix.y, matrix.bias = y.data_ptr(), None if bias is None else bias.data_ptr()
    _linear_kernel()(
        x.data_ptr(),
        library.DTYPES[x.dtype],
        rows,
        (Matrix * len(matrices))(*matrices),
        len(matrices),
        room.data_ptr(),
        together,
    )
    return results


def unpack_parts(
    kind: str,
    parts: Sequence[Tensor | None],
    outs: Sequence[int],
    columns: int,
    groups: Sequence[int],
    dtype: torch.dtype,
) -> list[PackedWeight]:
    """The packed weights that the operators' flat arguments stand for."""
    layout, weights = Layout(kind), []
    names = layout.parts
    for i, (out, group) in enumerate(zip(outs, groups, strict=True)):
        own = zip(names, parts[i * len(names) : (i + 1) * len(names)], strict=True)
        tensors = {name: part for name, part in own if part is not None}
        weights.append(PackedWeight(layout, (out, columns), group, tensors, dtype))
    return weights


def products_oracle(
    x: Tensor,
    kind: str,
    parts: Sequence[Tensor | None],
    outs: Sequence[int],
    groups: Sequence[int],
    dtype: torch.dtype,
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """The definition: the decoded matrix through PyTorch's product."""
    weights = unpack_parts(kind, parts, outs, x.shape[1], groups, dtype)
    return [
        F.linear(x, dequantize(weight, x.dtype), bias) for weight, bias in zip(weights, biases, strict=True)
    ]


def _products_cpu(
    x: Tensor,
    kind: str,
    parts: Sequence[Tensor | None],
    outs: Sequence[int],
    groups: Sequence[int],
    dtype: torch.dtype,
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    rounding = _rounding(kind, dtype, x.dtype)
    fits = all(bias is None or bias.dtype == x.dtype for bias in biases)
    if library.library() is None or rounding is None or not fits:
        return products_oracle(x, kind, parts, outs, groups, dtype, biases)
    x, each = x.contiguous(), len(Layout(kind).parts)
    parts = [None if part is None else part.contiguous() for part in parts]
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    matrices = [
        _matrix(kind, parts[i * each : (i + 1) * each], (out, x.shape[1]), groups[i], rounding)
        for i, out in enumerate(outs)
    ]
    return _run(x, matrices, biases)


def _products(x: Tensor, kind: str, *arguments: Any) -> list[Tensor]:
    return kernel_for(kind, x.device, products_oracle)(x, kind, *arguments)


def _products_fake(
    x: Tensor,
    kind: str,
    parts: Sequence[Tensor | None],
    outs: Sequence[int],
    groups: Sequence[int],
    dtype: torch.dtype,
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    return [x.new_empty(x.shape[0], out) for out in outs]


def _linear_oracle(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    return [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


def _linear_cpu(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    others = [*weights, *(bias for bias in biases if bias is not None)]
    if library.library() is None or x.dtype not in FLOATS or any(t.dtype != x.dtype for t in others):
        return _linear_oracle(x, weights, biases)
    x, weights = x.contiguous(), [weight.contiguous() for weight in weights]
    biases = [None if bias is None else bias.contiguous() for bias in biases]
    return _run(x, [_plain_matrix(weight) for weight in weights], biases)


def _plain_matrix(weight: Tensor) -> Matrix:
    matrix = Matrix(codes=weight.data_ptr(), out=weight.shape[0], columns=weight.shape[1], group=1)
    matrix.format, matrix.type = _ROWS, library.DTYPES[weight.dtype]
    return matrix


def _linear_fake(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    return [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]


def _decode_oracle(
    kind: str,
    parts: Sequence[Tensor | None],
    shape: Sequence[int],
    group: int,
    stored: torch.dtype,
    dtype: torch.dtype,
    first: int,
    last: int,
) -> Tensor:
    (weight,) = unpack_parts(kind, parts, shape[:1], shape[1], [group], stored)
    return dequantize(weight, dtype, slice(first, last))


def _decode_cpu(
    kind: str,
    parts: Sequence[Tensor | None],
    shape: Sequence[int],
    group: int,
    stored: torch.dtype,
    dtype: torch.dtype,
    first: int,
    last: int,
) -> Tensor:
    rounding = _rounding(kind, stored, dtype)
    if library.library() is None or rounding is None:
        return _decode_oracle(kind, parts, shape, group, stored, dtype, first, last)
    parts = [None if part is None else part.contiguous() for part in parts]
    matrix = _matrix(kind, parts, shape, group, rounding)
    decoded = torch.empty(last - first, shape[1], dtype=dtype)
    _decode_kernel()(ctypes.byref(matrix), first, last, decoded.data_ptr(), library.DTYPES[dtype])
    return decoded


def _decode_fake(
    kind: str,
    parts: Sequence[Tensor | None],
    shape: Sequence[int],
    group: int,
    stored: torch.dtype,
    dtype: torch.dtype,
    first: int,
    last: int,
) -> Tensor:
    device = next(part.device for part in parts if part is not None)
    return torch.empty(last - first, shape[1], dtype=dtype, device=device)


library.define(
    "dense_products(Tensor x, str kind, Tensor?[] parts, int[] outs, int[] groups, ScalarType dtype, "
    "Tensor?[] biases) -> Tensor[]",
    cpu=_products,
    everywhere=_products,
    fake=_products_fake,
)
for _layout in _FORMATS:
    register(_layout, "cpu", _products_cpu)
library.define(
    "dense_linear(Tensor x, Tensor[] weights, Tensor?[] biases) -> Tensor[]",
    cpu=_linear_cpu,
    everywhere=_linear_oracle,
    fake=_linear_fake,
)
library.define(
    "dense_decode(str kind, Tensor?[] parts, int[] shape, int group, ScalarType stored, ScalarType dtype, "
    "int first, int last) -> Tensor",
    cpu=_decode_cpu,
    everywhere=_decode_oracle,
    fake=_decode_fake,
)
