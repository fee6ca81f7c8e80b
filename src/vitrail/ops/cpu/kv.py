"""The operator that stores new rows in the block cache, and its 8-bit format. Kernels from native/attention.h.

torch.ops.vitrail.cache_write   new keys and values into their slots, rounded to the cache's precision

8 bits: one float32 scale per position and head, max|x| / 127, and codes −127 … 127 with x ≈ scale · code. A row that is
not finite has the scale NaN, one below 1e-30 the scale 0; codes are 0 then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.ops.checks import INTEGERS, misfit, outside
from vitrail.ops.cpu import library
from vitrail.ops.cpu.registry import NotTaken, operator
from vitrail.ops.dtypes import FLOATS

_NO_MEMORY = 1


class CacheWrite(ctypes.Structure):
    """CacheWrite of native/attention.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("k", "v", "keys", "values", "scales", "at")),
        *((name, ctypes.c_int64) for name in ("rows", "groups", "width", "slots", "k_stride", "v_stride")),
        *((name, ctypes.c_int32) for name in ("type", "key_type")),
    ]  # fmt: skip


@lru_cache(maxsize=2)
def _kernel(name: str) -> Any:
    found = library.function(name, ctypes.c_void_p)
    found.restype = ctypes.c_int32
    return found


def run(name: str, call: ctypes.Structure) -> None:
    """Call the library's function with a structure of native/attention.h.

    Raises:
        InputError: indices point outside the tensors.
        MemoryError: there was none for the kernel's own use.
    """
    check(_kernel(name)(ctypes.byref(call)))


def check(result: int) -> None:
    """Raise what an AttentionResult of native/attention.h says, as `run` does."""
    if result == _NO_MEMORY:
        raise MemoryError("attention could not get its working memory, a few hundred kilobytes per thread.")
    if result:
        raise outside()


def pointer(x: Tensor | None) -> int | None:
    """Where a tensor's elements lie, or None."""
    return None if x is None else x.data_ptr()


def dense_rows(x: Tensor) -> Tensor:
    """x (n, heads, K) with its heads one after another in each row; a view of wider rows stays one."""
    dense = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if dense or x.numel() == 0 else x.contiguous()


def supported(q: Tensor, keys: Tensor) -> bool:
    """Whether the kernels take rows of q's dtype with keys stored like these."""
    return q.dtype in FLOATS and (keys.dtype in FLOATS or keys.dtype == torch.int8)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (…, K) to 8 bits: codes int8 (…, K) and their scale float32 (…,)."""
    x = x.float()
    most = x.abs().amax(dim=-1)
    known, zero = most.isfinite(), most < 1e-30
    scale = torch.where(zero, 0.0, most / 127).masked_fill(~known, torch.nan)
    inverse = torch.where(known & ~zero, 1 / scale, 0.0)
    codes = torch.where(known[..., None], x, 0.0) * inverse[..., None]
    return codes.round().clamp(-127, 127).to(torch.int8), scale


def check_slots(slots: Tensor, count: int) -> None:
    """Raise InputError unless slots on the host lie within a cache of `count` positions."""
    if slots.numel() and not (int(slots.min()) >= 0 and int(slots.max()) < count):
        raise outside()


def cache_write_oracle(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, slots: Tensor
) -> None:
    """Rows k, v (L, G, K) into the slots of keys, values (blocks, block, G, K), rounded to their dtype."""
    if slots.device.type == "cpu":  # on the host they cost nothing to look at, elsewhere the copy does
        check_slots(slots, keys.shape[0] * keys.shape[1])
    for side, (x, stored) in enumerate(((k, keys), (v, values))):
        flat = stored.view(-1, *stored.shape[2:])
        if scales is None:
            flat.index_copy_(0, slots, x.to(stored.dtype))
            continue
        codes, scale = round_rows(x)
        flat.index_copy_(0, slots, codes)
        scales[side].view(-1, scales.shape[-1]).index_copy_(0, slots, scale)


def is_cache(keys: Tensor, values: Tensor, scales: Tensor | None) -> bool:
    """Whether these are one layer's cache: keys and values (blocks, block, G, K), and scales where they are int8."""
    if keys.dim() != 4 or values.shape != keys.shape or values.dtype != keys.dtype or keys.shape[1] < 1:
        return False
    if scales is None or keys.dtype != torch.int8:
        return scales is None and keys.dtype != torch.int8
    return scales.dtype == torch.float32 and scales.shape == (2, *keys.shape[:3])


def _cache_write_cpu(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, slots: Tensor
) -> None:
    count = keys.shape[0] * keys.shape[1]
    whole = keys.is_contiguous() and values.is_contiguous() and (scales is None or scales.is_contiguous())
    if k.dtype != v.dtype or not whole or not supported(k, keys):
        raise NotTaken
    k, v, at = dense_rows(k), dense_rows(v), slots.to(torch.int64).contiguous()
    call = CacheWrite(
        k=k.data_ptr(), v=v.data_ptr(), keys=keys.data_ptr(), values=values.data_ptr(), scales=pointer(scales),
        at=at.data_ptr(), rows=k.shape[0], groups=k.shape[1], width=k.shape[2], slots=count,
        k_stride=k.stride(0), v_stride=v.stride(0), type=library.DTYPES[k.dtype], key_type=library.DTYPES[keys.dtype],
    )  # fmt: skip
    run("vt_cache_write", call)
    return None


def _check_cache_write(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, slots: Tensor
) -> None:
    rows = k.dim() == 3 and v.shape == k.shape and slots.shape == k.shape[:1] and slots.dtype in INTEGERS
    if not rows or not is_cache(keys, values, scales) or keys.shape[2:] != k.shape[1:]:
        raise misfit(
            "cache_write", "k, v (L, G, K), a cache (blocks, block, G, K), with scales if it is int8, and slots (L,)",
            k=k, v=v, keys=keys, values=values, scales=scales, slots=slots,
        )  # fmt: skip


cache_write: Callable[..., None] = operator(
    "cache_write",
    cache_write_oracle,
    cpu=_cache_write_cpu,
    fake=lambda *_: None,
    check=_check_cache_write,
    mutates=("keys", "values", "scales"),
)
