"""Operators on single rows: the root-mean-square norm. Definitions in PyTorch, kernels from native/rows.h."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.ops import native


@lru_cache(maxsize=1)
def _rms_norm_kernel() -> Any:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    return native.function(
        "vt_rms_norm", pointer, pointer, pointer, ctypes.c_int32, size, size, ctypes.c_float
    )


def rms_norm_oracle(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (…, D) / rms(x) in float32, rounded to x's dtype, times weight (D,)."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def _rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if native.library() is None or x.dtype not in native.DTYPES or weight.dtype != x.dtype:
        return rms_norm_oracle(x, weight, eps)
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    width = weight.shape[0]
    rows = x.numel() // width if width else 0
    _rms_norm_kernel()(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), native.DTYPES[x.dtype], rows, width, eps
    )
    return y


def _rms_norm_fake(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x, dtype=torch.promote_types(x.dtype, weight.dtype))


native.define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> Tensor",
    cpu=_rms_norm_cpu,
    everywhere=rms_norm_oracle,
    fake=_rms_norm_fake,
)
