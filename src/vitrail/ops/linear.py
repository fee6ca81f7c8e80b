"""Matrix products with a plain or packed weight, and embedding look-up: the only ones in the package.

The operators of each memory layout are in one table here; ops/kernels.py chooses their kernels by device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.ops.cpu import dense as cpu_dense
from vitrail.ops.cpu.dense import decoded_products
from vitrail.ops.cpu.quant import quant_products, quant_rows
from vitrail.ops.reference.quant_matmul import rounded_input_grad
from vitrail.ops.weight import Layout, PackedWeight, Weight, dequantize, dequantize_rows

__all__ = [
    "PackedWeight",
    "Weight",
    "decoded_products",
    "dequantize",
    "embedding",
    "linear",
    "linear_group",
    "linear_input_grad",
]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply x by the transpose of a weight and add a bias.

    4- and 8-bit panels multiply rounded activations (ops/reference/quant_matmul.py), other packed weights are decoded
    block by block (ops/cpu/dense.py). Gradients of packed weights flow to x and bias only.

    Args:
        x: (…, in).
        weight: (out, in), plain or packed.
        bias: (out,) or None.

    Returns:
        (…, out) in x's dtype.
    """
    if isinstance(weight, Tensor):
        if cpu_dense.kernel_is_faster(x, [weight], bias):
            return cpu_dense.plain_products(x, [weight], [bias])[0]
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled() or not (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _products(x, [weight], [bias])[0]
    product: Tensor = _PackedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


def linear_group(x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
    """Multiply one x (…, in) by several weights (out_i, in), such as q, k, v or gate, up: each (…, out_i).

    Packed weights of one layout are one call, which rounds x once.
    """
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(plain) == len(weights) and cpu_dense.kernel_is_faster(x, plain):
        return cpu_dense.plain_products(x, plain, [None] * len(plain))
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    mixed = len(packed) < len(weights) or len({weight.layout for weight in packed}) > 1
    if mixed or (x.requires_grad and torch.is_grad_enabled()):
        return [linear(x, weight) for weight in weights]
    return _products(x, packed, [None] * len(packed))


def linear_input_grad(dy: Tensor, weight: Weight) -> Tensor:
    """Return the gradient of x for y = linear(x, weight): dy (…, out) times weight (out, in), (…, in).

    For 4- and 8-bit panels it is the gradient of the product with the decoded weight, as if x were not rounded.
    """
    if isinstance(weight, Tensor):
        return dy @ weight.to(dy.dtype)
    return _OPERATORS[weight.layout].input_grad(dy, weight)


def embedding(ids: Tensor, weight: Weight) -> Tensor:
    """Return rows of weight (V, D) at ids (…): (…, D). Only these rows of a packed weight are decoded."""
    if isinstance(weight, Tensor):
        return F.embedding(ids, weight)
    return _OPERATORS[weight.layout].rows(weight, ids.flatten()).view(*ids.shape, weight.shape[1])


class _PackedLinear(torch.autograd.Function):
    """y = x·Wᵀ with a packed W; the backward pass decodes W again instead of keeping a dense copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _products(x, [weight], [bias])[0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy,) = grads
        db = dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return linear_input_grad(dy, ctx.weight), None, db


def _products(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Multiply x (…, in) by packed weights of one layout."""
    rows = x.reshape(-1, x.shape[-1])
    results = _OPERATORS[weights[0].layout].products(rows, weights, biases)
    return [result.view(*x.shape[:-1], result.shape[-1]) for result in results]


def _unique_rows(weight: PackedWeight, ids: Tensor) -> Tensor:
    """Return rows ids (n,), decoding each distinct row once."""
    rows, where = torch.unique(ids, return_inverse=True)
    return dequantize_rows(weight, rows)[where]


@dataclass(frozen=True, slots=True)
class _Operators:
    """Operators of one memory layout.

    products    (x (rows, in), weights (out_i, in), biases) → one (rows, out_i) each.
    input_grad  (dy (…, out), weight) → the gradient of x, (…, in).
    rows        (weight (V, D), ids (n,)) → (n, D) in the weight's dtype.
    """

    products: Callable[[Tensor, Sequence[PackedWeight], Sequence[Tensor | None]], list[Tensor]]
    input_grad: Callable[[Tensor, PackedWeight], Tensor]
    rows: Callable[[PackedWeight, Tensor], Tensor]


_ROUNDED = _Operators(quant_products, rounded_input_grad, quant_rows)
_DECODED = _Operators(cpu_dense.products, cpu_dense.input_grad, _unique_rows)
_OPERATORS: dict[Layout, _Operators] = {
    Layout.MAP4: _DECODED,
    Layout.INT8_ROWS: _DECODED,
    Layout.PANELS4: _ROUNDED,
    Layout.PANELS8: _ROUNDED,
    Layout.PANELS16: _Operators(cpu_dense.products, cpu_dense.input_grad, dequantize_rows),
}
