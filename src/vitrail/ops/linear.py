"""The only matrix product with a weight, plain or packed, and the only table look-up. Holds no parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.ops.cpu import dense as cpu_dense
from vitrail.ops.cpu.quant import BITS, quant_products, quant_rows
from vitrail.ops.reference.quant_matmul import rounded_input_grad
from vitrail.ops.weight import OWN_KINDS, PackedWeight, Weight, dequantize, dequantize_rows

__all__ = ["PackedWeight", "Weight", "dequantize", "embedding", "linear", "linear_group", "linear_input_grad"]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x (…, in) times weight (out, in) transposed, plus bias (out,): (…, out) in x's dtype.

    q4 and q8 multiply rounded activations (ops/reference/quant_matmul.py), other packed weights are decoded piece by piece
    (ops/cpu/dense.py). Gradients of packed weights flow to x and bias only.
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
    """The same x (…, in) through several weights (out_i, in), as q, k, v or gate, up: each (…, out_i).

    Packed weights of one kind are one call: x is rounded once.
    """
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    if len(plain) == len(weights) and cpu_dense.kernel_is_faster(x, plain):
        return cpu_dense.plain_products(x, plain, [None] * len(plain))
    packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
    kinds = {weight.kind for weight in packed}
    if len(packed) < len(weights) or len(kinds) != 1 or (x.requires_grad and torch.is_grad_enabled()):
        return [linear(x, weight) for weight in weights]
    return _products(x, packed, [None] * len(packed))


def linear_input_grad(dy: Tensor, weight: Weight) -> Tensor:
    """The gradient of x for y = linear(x, weight): dy (…, out) times weight (out, in), (…, in).

    Of q4 and q8 it is the gradient of the product with the decoded weight, as if x were not rounded.
    """
    if isinstance(weight, Tensor):
        return dy @ weight.to(dy.dtype)
    return _INPUT_GRADS[weight.kind](dy, weight)


def embedding(ids: Tensor, weight: Weight) -> Tensor:
    """Rows of weight (V, D) at ids (…): (…, D). Of a packed weight only the rows asked for are decoded."""
    if isinstance(weight, Tensor):
        return F.embedding(ids, weight)
    if weight.kind in BITS:
        return quant_rows(weight, ids.flatten()).view(*ids.shape, weight.shape[1])
    if weight.kind in OWN_KINDS:
        return dequantize_rows(weight, ids.flatten()).view(*ids.shape, weight.shape[1])
    rows, where = torch.unique(ids, return_inverse=True)
    return dequantize_rows(weight, rows)[where]


class _PackedLinear(torch.autograd.Function):
    """y = x·Wᵀ with a packed W: the backward pass decodes W again, so that no dense copy is kept for it."""

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
    """x (…, in) through packed weights of one kind: the table's function on rows."""
    rows = x.reshape(-1, x.shape[-1])
    results = _PRODUCTS[weights[0].kind](rows, weights, biases)
    return [result.view(*x.shape[:-1], result.shape[-1]) for result in results]


# kind → its product (x (rows, in), weights, biases) → one (rows, out_i) each.
_PRODUCTS: dict[str, Callable[[Tensor, Sequence[PackedWeight], Sequence[Tensor | None]], list[Tensor]]] = {
    "q4": quant_products,
    "q8": quant_products,
    **dict.fromkeys(("nf4", "fp4", "int8", "bf16"), cpu_dense.products),
}
# kind → the gradient of x (dy (…, out), weight) → (…, in).
_INPUT_GRADS: dict[str, Callable[[Tensor, PackedWeight], Tensor]] = {
    "q4": rounded_input_grad,
    "q8": rounded_input_grad,
    **dict.fromkeys(("nf4", "fp4", "int8", "bf16"), cpu_dense.input_grad),
}
