"""A matrix into the format that was chosen for it. Reads no files."""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.ops.weight import PackedWeight
from vitrail.quant.config import BitsAndBytesConfig, Quantization
from vitrail.quant.own import quantize_own
from vitrail.quant.own_layout import OWN_KINDS
from vitrail.quant.policy import Choice
from vitrail.quant.replace import quantize


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
