"""Attention operators. Kernels: native/attention.h; definition: ops/reference/attention.py.

torch.ops.vitrail.attention          query rows over the new keys of their segments
torch.ops.vitrail.attention_cached   query rows over keys in cache blocks, new ones included

On a CPU with a library each is one call. Every query row walks blocks of 32 absolute positions in ascending order, so its
result depends on its position, keys and values only: not on other rows, on threads, or on whether its keys are cached or
new. Elsewhere the PyTorch definition runs, equal within rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.checks import INTEGERS, misfit, outside
from vitrail.ops.cpu import library
from vitrail.ops.cpu.kv import dense_rows, is_cache, pointer, run, supported
from vitrail.ops.cpu.registry import NotTaken, operator
from vitrail.ops.kv import BlockTables, LayerKV
from vitrail.ops.reference import attention as reference_attention
from vitrail.ops.segments import Segments

_WINDOW = "a window of at least 1 or None"


class AttentionCall(ctypes.Structure):
    """AttentionCall of native/attention.h, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "q", "keys", "values", "scales", "block_table", "q_offsets", "kv_lengths", "out")),
        *((name, ctypes.c_int64) for name in (
            "rows", "segments", "heads", "groups", "width", "slots", "block", "table_width",
            "q_stride", "key_stride", "value_stride", "window")),
        *((name, ctypes.c_int32) for name in ("causal", "type", "key_type")),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


# --- attention -------------------------------------------------------------------------------------------------


def int32(x: Tensor) -> Tensor:
    """Convert offsets, lengths or blocks to int32 for the kernels; InputError for a value out of range."""
    narrow = x.to(torch.int32).contiguous()
    if x.dtype != torch.int32 and bool((narrow != x).any()):
        raise outside()
    return narrow


def _attend(q: Tensor, keys: Tensor, values: Tensor, q_offsets: Tensor, kv_lengths: Tensor, *, causal: bool,
            scale: float, window: int | None, scales: Tensor | None = None, block_table: Tensor | None = None,
            slots: int = 0, block: int = 0) -> Tensor:  # fmt: skip
    """Run the kernel. keys, values: (n, G, K), a segment's own rows or all slots of a cache."""
    q, keys, values = dense_rows(q), dense_rows(keys), dense_rows(values)
    offsets, lengths = int32(q_offsets), int32(kv_lengths)
    table = None if block_table is None else int32(block_table)
    out = torch.empty(q.shape, dtype=q.dtype)
    call = AttentionCall(
        q=q.data_ptr(), keys=keys.data_ptr(), values=values.data_ptr(), scales=pointer(scales),
        block_table=pointer(table), q_offsets=offsets.data_ptr(), kv_lengths=lengths.data_ptr(), out=out.data_ptr(),
        rows=q.shape[0], segments=lengths.shape[0], heads=q.shape[1], groups=keys.shape[1], width=q.shape[2],
        slots=slots, block=block, table_width=0 if table is None else table.shape[1],
        q_stride=q.stride(0), key_stride=keys.stride(0), value_stride=values.stride(0), window=window or 0,
        causal=causal, type=library.DTYPES[q.dtype], key_type=library.DTYPES[keys.dtype], scale=scale,
    )  # fmt: skip
    run("vt_attention", call)
    return out


def _segments(q_offsets: Tensor, kv_lengths: Tensor, causal: bool) -> Segments:
    return Segments(q_offsets, kv_lengths, tuple(q_offsets.tolist()), tuple(kv_lengths.tolist()), causal)


def _fresh_anywhere(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, kv_lengths: Tensor, causal: bool,
                    scale: float, window: int | None) -> Tensor:  # fmt: skip
    segments = _segments(q_offsets, kv_lengths, causal)
    _check_indices(len(q), segments)
    return reference_attention.attention(q, k, v, AttentionMetadata(segments), scale=scale, window=window)


def _fresh_cpu(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, kv_lengths: Tensor, causal: bool, scale: float,
               window: int | None) -> Tensor:  # fmt: skip
    if not supported(q, k) or v.dtype != k.dtype or k.dtype == torch.int8:
        raise NotTaken
    return _attend(q, k, v, q_offsets, kv_lengths, causal=causal, scale=scale, window=window)


def _check_fresh(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, kv_lengths: Tensor, causal: bool,
                 scale: float, window: int | None) -> None:  # fmt: skip
    rows = q.dim() == k.dim() == 3 and v.shape == k.shape and k.shape[0] == q.shape[0]
    if not rows or not _heads_fit(q, k) or not _counts_fit(q_offsets, kv_lengths, window):
        raise misfit(
            "attention", f"q (L, A, K), k, v (L, G, K), G a divisor of A, n + 1 offsets, n lengths and {_WINDOW}",
            q=q, k=k, v=v, q_offsets=q_offsets, kv_lengths=kv_lengths,
        )  # fmt: skip


def _heads_fit(q: Tensor, keys: Tensor) -> bool:
    """Return whether the heads of keys (…, G, K) divide those of q (L, A, K)."""
    heads, groups = q.shape[1], keys.shape[-2]
    return heads >= 1 and groups >= 1 and heads % groups == 0 and q.shape[2] == keys.shape[-1]


def _counts_fit(q_offsets: Tensor, kv_lengths: Tensor, window: int | None) -> bool:
    whole = q_offsets.dtype in INTEGERS and kv_lengths.dtype in INTEGERS and (window is None or window >= 1)
    return whole and kv_lengths.dim() == 1 and q_offsets.shape == (kv_lengths.shape[0] + 1,)


def _check_indices(rows: int, segments: Segments, tables: tuple[tuple[int, ...], ...] | None = None,
                   block: int = 1, blocks: int = 0) -> None:  # fmt: skip
    """Raise InputError unless segments cover `rows` rows and their keys lie in their blocks; for the definition.

    The kernels check the same themselves (native/attention.cpp).
    """
    fits = segments.q_host[0] == 0 and segments.q_host[-1] == rows
    for n, length in enumerate(segments.kv_host):
        new = segments.query_length(n)
        if tables is None:
            fits = fits and 0 <= new == length
        else:
            used = tables[n][: -(-length // block)]
            fits = fits and 0 <= new <= length <= len(used) * block and all(0 <= at < blocks for at in used)
    if not fits:
        raise outside()


def _slots(q_offsets: Tensor, kv_lengths: Tensor, block_table: Tensor, block: int) -> Tensor:
    """Return int64 (L,), the cache slot of each new row."""
    rows = torch.arange(int(q_offsets[-1]), device=q_offsets.device)
    segment = torch.repeat_interleave(torch.arange(len(kv_lengths), device=rows.device), q_offsets.diff())
    position = rows + (kv_lengths - q_offsets[1:])[segment]
    return block_table[segment, position // block].long() * block + position % block


def _cached_anywhere(q: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, block_table: Tensor,
                     q_offsets: Tensor, kv_lengths: Tensor, scale: float, window: int | None) -> Tensor:  # fmt: skip
    segments = _segments(q_offsets, kv_lengths, True)
    tables = BlockTables(block_table, tuple(tuple(row) for row in block_table.tolist()))
    _check_indices(len(q), segments, tables.host, *keys.shape[1::-1])
    kv = LayerKV(keys, values, scales)
    metadata = AttentionMetadata(segments, _slots(q_offsets, kv_lengths, block_table, keys.shape[1]), tables)
    metadata = reference_attention.plan(metadata, kv, q.dtype)
    return reference_attention.attention_cached(q, metadata, scale=scale, kv=kv, window=window)


def _cached_cpu(q: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, block_table: Tensor,
                q_offsets: Tensor, kv_lengths: Tensor, scale: float, window: int | None) -> Tensor:  # fmt: skip
    whole = keys.is_contiguous() and values.is_contiguous() and (scales is None or scales.is_contiguous())
    blocks, block = keys.shape[:2]
    if not supported(q, keys) or not whole:
        raise NotTaken
    return _attend(
        q, keys.flatten(0, 1), values.flatten(0, 1), q_offsets, kv_lengths, causal=True, scale=scale, window=window,
        scales=scales, block_table=block_table, slots=blocks * block, block=block,
    )  # fmt: skip


def _check_cached(q: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, block_table: Tensor,
                  q_offsets: Tensor, kv_lengths: Tensor, scale: float, window: int | None) -> None:  # fmt: skip
    cache = q.dim() == 3 and is_cache(keys, values, scales) and _heads_fit(q, keys)
    table = (
        block_table.dim() == 2 and block_table.shape[:1] == kv_lengths.shape and block_table.dtype in INTEGERS
    )
    if not cache or not table or not _counts_fit(q_offsets, kv_lengths, window):
        raise misfit(
            "attention_cached",
            "q (L, A, K), a cache (blocks, block, G, K), with scales if it is int8, G a divisor of A, a table "
            f"(n, blocks), n + 1 offsets, n lengths and {_WINDOW}",
            q=q, keys=keys, values=values, scales=scales, block_table=block_table, q_offsets=q_offsets,
            kv_lengths=kv_lengths,
        )  # fmt: skip


def _attention_fake(q: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


attention: Callable[..., Tensor] = operator(
    "attention", _fresh_anywhere, cpu=_fresh_cpu, fake=_attention_fake, check=_check_fresh
)
attention_cached: Callable[..., Tensor] = operator(
    "attention_cached", _cached_anywhere, cpu=_cached_cpu, fake=_attention_fake, check=_check_cached
)


def exp2(x: Tensor) -> Tensor:
    """Compute the kernels' 2^x for x ≤ 0, float32 (n,); for tests. RuntimeError without a library."""
    if x.dtype != torch.float32 or not x.is_contiguous() or x.device.type != "cpu":
        raise misfit("exp2", "neighbouring float32 numbers on a CPU", x=x)
    if library.library() is None:
        raise RuntimeError("there are no kernels")
    kernel = library.function("vt_attention_exp2", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    y = torch.empty_like(x)
    kernel(x.data_ptr(), y.data_ptr(), x.numel())
    return y
