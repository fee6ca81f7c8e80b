"""A matrix into the format that was chosen for it, and how far the packed one is from it. Reads no files."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.ops.weight import PackedWeight, dequantize
from vitrail.quant.config import BitsAndBytesConfig, Quantization
from vitrail.quant.own import quantize_own
from vitrail.quant.own_layout import OWN_KINDS
from vitrail.quant.policy import Choice
from vitrail.quant.replace import quantize

_CHUNK = 1 << 18  # elements decoded at once


def pack(
    weight: Tensor,
    choice: Choice,
    config: Quantization,
    *,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
) -> PackedWeight:
    """A matrix (out, in) as `choice` says, on `device`, with the result type `dtype`.

    bitsandbytes' formats round the matrix to `dtype` first, as that library does; Vitrail's own take it as it is.
    CheckpointError begins with `name` where the matrix holds what is no finite number.
    """
    if choice.kind not in OWN_KINDS and isinstance(config, BitsAndBytesConfig):
        return quantize(weight.to(device=device, dtype=dtype, copy=True), config)
    packed = quantize_own(weight, choice.kind, choice.group, name=name, dtype=dtype)
    tensors = {name: tensor.to(device) for name, tensor in packed.tensors.items()}
    return PackedWeight(packed.kind, packed.shape, packed.group, tensors, dtype)


def squared_error(weight: Tensor, packed: PackedWeight) -> tuple[float, float]:
    """Σ (decoded - weight)² and Σ weight², in float64: the relative error (Frobenius) is the root of their quotient."""
    wrong, whole = 0.0, 0.0
    rows = max(16, _CHUNK // max(1, weight.shape[1]) // 16 * 16)
    for start in range(0, weight.shape[0], rows):
        exact = weight[start : start + rows].to(torch.float32)
        decoded = dequantize(packed, torch.float32, slice(start, start + rows))
        whole += float(exact.square().sum(dtype=torch.float64))
        wrong += float((decoded - exact).square().sum(dtype=torch.float64))
    return wrong, whole
