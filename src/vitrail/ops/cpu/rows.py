"""Row-wise operators: RMSNorm, SwiGLU gate, rotary embedding. Definitions in PyTorch, kernels from native/rows.h.

Without gradients each function uses the kernel's operator, with gradients the PyTorch definition: the operators have no
derivatives. A row's bits never depend on other rows; all instruction sets give the same bits.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.ops.checks import misfit
from vitrail.ops.cpu import library
from vitrail.ops.cpu.registry import NotTaken, operator
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.rope import rotate

_POINTER, _SIZE, _TYPE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x (…, D) / sqrt(mean(x²) + eps) in float32, rounded to x's dtype, times weight (D,)."""
    if _differentiated(x, weight):
        return rms_norm_oracle(x, weight, eps)
    return _rms_norm(x, weight, eps)


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) · up, both (…, F); silu is rounded to the dtype before the product (arXiv 2002.05202)."""
    if _differentiated(gate, up):
        return silu_gate_oracle(gate, up)
    return _silu_gate(gate, up)


def rotate_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate q (L, A, K) and k (L, G, K) by cos, sin (L, K) of their dtype: ops/rope.rotate of both, bit for bit."""
    if _differentiated(q, k):
        return rotate_pair_oracle(q, k, cos, sin)
    return _rotate_pair(q, k, cos, sin)


def _differentiated(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


# --- definitions ----------------------------------------------------------------------------------------------------


def rms_norm_oracle(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` in PyTorch."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def silu_gate_oracle(gate: Tensor, up: Tensor) -> Tensor:
    """`silu_gate` in PyTorch."""
    return F.silu(gate) * up


def rotate_pair_oracle(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`rotate_pair` in PyTorch."""
    return rotate(q, cos, sin), rotate(k, cos, sin)


# --- kernels --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _rms_norm_kernel() -> Any:
    return library.function("vt_rms_norm", _POINTER, _POINTER, _POINTER, _TYPE, _SIZE, _SIZE, ctypes.c_float)


@lru_cache(maxsize=1)
def _silu_gate_kernel() -> Any:
    return library.function("vt_silu_gate", _POINTER, _POINTER, _POINTER, _TYPE, _SIZE)


@lru_cache(maxsize=1)
def _rotate_kernel() -> Any:
    return library.function("vt_rotate", *[_POINTER] * 6, _TYPE, *[_SIZE] * 4)


def _of_one_type(*tensors: Tensor) -> bool:
    """Return whether kernels support these tensors: one floating-point dtype that they have."""
    dtype = tensors[0].dtype
    return dtype in FLOATS and all(tensor.dtype == dtype for tensor in tensors)


def _rms_norm_cpu(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    width = weight.shape[0]
    if not _of_one_type(x, weight) or not width:
        raise NotTaken
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    kind = library.DTYPES[x.dtype]
    _rms_norm_kernel()(x.data_ptr(), weight.data_ptr(), y.data_ptr(), kind, x.numel() // width, width, eps)
    return y


def _silu_gate_cpu(gate: Tensor, up: Tensor) -> Tensor:
    if not _of_one_type(gate, up):
        raise NotTaken
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    _silu_gate_kernel()(
        gate.data_ptr(), up.data_ptr(), y.data_ptr(), library.DTYPES[gate.dtype], gate.numel()
    )
    return y


def _rotate_pair_cpu(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    if not _of_one_type(q, k, cos, sin):
        raise NotTaken
    rows, q_heads, width = q.shape
    q, k, cos, sin = q.contiguous(), k.contiguous(), cos.contiguous(), sin.contiguous()
    results = torch.empty_like(q), torch.empty_like(k)
    addresses = [tensor.data_ptr() for tensor in (q, k, cos, sin, *results)]
    _rotate_kernel()(*addresses, library.DTYPES[q.dtype], rows, q_heads, k.shape[1], width)
    return results


# --- registration ---------------------------------------------------------------------------------------------------


def _check_rms_norm(x: Tensor, weight: Tensor, eps: float) -> None:
    if weight.dim() != 1 or x.shape[-1:] != weight.shape:
        raise misfit("rms_norm", "x (…, D) and a weight (D,)", x=x, weight=weight)


def _check_silu_gate(gate: Tensor, up: Tensor) -> None:
    if gate.shape != up.shape:
        raise misfit("silu_gate", "gate and up of one shape", gate=gate, up=up)


def _check_rotate_pair(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> None:
    turned = q.dim() == k.dim() == 3 and (q.shape[0], q.shape[2]) == (k.shape[0], k.shape[2]) == cos.shape
    if not turned or sin.shape != cos.shape or q.shape[2] % 2:
        expected = "q (L, A, K), k (L, G, K) and cos, sin (L, K), K even"
        raise misfit("rotate_pair", expected, q=q, k=k, cos=cos, sin=sin)


def _pair_fake(x: Tensor, y: Tensor, *_: float) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, y.dtype))


_rms_norm = operator("rms_norm", rms_norm_oracle, cpu=_rms_norm_cpu, fake=_pair_fake, check=_check_rms_norm)
_silu_gate = operator(
    "silu_gate", silu_gate_oracle, cpu=_silu_gate_cpu, fake=_pair_fake, check=_check_silu_gate
)
_rotate_pair = operator(
    "rotate_pair",
    rotate_pair_oracle,
    cpu=_rotate_pair_cpu,
    fake=lambda q, k, cos, sin: (q.new_empty(q.shape), k.new_empty(k.shape)),
    check=_check_rotate_pair,
)
