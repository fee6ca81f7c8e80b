"""Cache-write operator and its 8-bit format. Kernels: native/attention.h.

torch.ops.vitrail.cache_write   stores new keys and values in their slots, rounded to the cache's precision

8 bits: one float32 scale per position and head, max|x| / 127, and codes −127 … 127 with x ≈ scale · code. A non-finite
row has the scale NaN, one below 1e-30 the scale 0; their codes are 0.
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
    """Call a library function with a struct of native/attention.h.

    Raises:
        InputError: indices out of range.
        MemoryError: the kernel could not allocate its scratch memory.
    """
    check(_kernel(name)(ctypes.byref(call)))


def check(result: int) -> None:
    """Raise the error for an AttentionResult of native/attention.h, as `run` does."""
    if result == _NO_MEMORY:
        raise MemoryError("attention could not get its working memory, a few hundred kilobytes per thread.")
    if result:
        raise outside()


def pointer(x: Tensor | None) -> int | None:
    """Return the address of a tensor's data, or None."""
    return None if x is None else x.data_ptr()


def dense_rows(x: Tensor) -> Tensor:
    """Return x (n, heads, K) with contiguous heads in each row; a slice of wider rows stays a view."""
    dense = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if dense or x.numel() == 0 else x.contiguous()


def supported(q: Tensor, keys: Tensor) -> bool:
    """Return whether the kernels support queries like q with keys stored like these."""
    return q.dtype in FLOATS and (keys.dtype in FLOATS or keys.dtype == torch.int8)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise x (…, K) to int8: codes (…, K) and scale float32 (…,)."""
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
    """Store new rows in their slots, rounded to the cache's dtype: the definition.

    Args:
        k, v: (L, G, K).
        keys, values: (blocks, block, G, K), written to.
        scales: (2, blocks, block, G) of an int8 cache, else None.
        slots: int64 (L,).
    """
    if slots.device.type == "cpu":  # on a device the check would need a copy
        check_slots(slots, keys.shape[0] * keys.shape[1])
    slots = slots.long()
    flats = [
        stored.view(-1, *stored.shape[2:]) for stored in (keys, values)
    ]  # both views, before either is written
    for side, (x, flat) in enumerate(zip((k, v), flats, strict=True)):
        if scales is None:
            flat.index_copy_(0, slots, x.to(flat.dtype))
            continue
        codes, scale = round_rows(x)
        flat.index_copy_(0, slots, codes)
        scales[side].view(-1, scales.shape[-1]).index_copy_(0, slots, scale)


def is_cache(keys: Tensor, values: Tensor, scales: Tensor | None) -> bool:
    """Return whether these are one layer's cache: keys and values (blocks, block, G, K), and scales if they are int8."""
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
