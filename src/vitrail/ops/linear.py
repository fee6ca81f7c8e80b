"""The only matrix product with a weight, plain or packed, and the only table look-up. Holds no parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.ops.weight import PackedWeight, Weight, dequantize

__all__ = ["PackedWeight", "Weight", "dequantize", "embedding", "linear", "linear_group", "linear_input_grad"]


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x (…, in) times weight (out, in) transposed, plus bias (out,): (…, out) in x's dtype.

    A packed weight is decoded for the product and dropped again; gradients flow to x and bias only.
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    product: Tensor = _PackedLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


def linear_group(x: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
    """The same x (…, in) through several weights (out_i, in), as q, k, v or gate, up: each (…, out_i)."""
    return [linear(x, weight) for weight in weights]


def linear_input_grad(dy: Tensor, weight: Weight) -> Tensor:
    """The gradient of x for y = linear(x, weight): dy (…, out) times weight (out, in), (…, in)."""
    return dy @ dequantize(weight, dy.dtype)


def embedding(ids: Tensor, weight: Weight) -> Tensor:
    """Rows of weight (V, D) at ids (…): (…, D). Of a packed weight only the rows asked for are decoded."""
    if isinstance(weight, Tensor):
        return F.embedding(ids, weight)
    rows, where = torch.unique(ids, return_inverse=True)
    table = [dequantize(weight, weight.dtype, slice(row, row + 1)) for row in rows.tolist()]
    if not table:
        return torch.empty(*ids.shape, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return torch.cat(table)[where]


class _PackedLinear(torch.autograd.Function):
    """y = x·Wᵀ with a packed W: the backward pass decodes W again, so that no dense copy is kept for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, dequantize(weight, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy,) = grads
        db = dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return linear_input_grad(dy, ctx.weight), None, db
