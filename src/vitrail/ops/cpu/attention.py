"""The operators of attention. Kernels from native/attention.h; the definition in PyTorch stands in reference_attention.py.

torch.ops.vitrail.attention          query rows over their own segments' new keys
torch.ops.vitrail.attention_cached   query rows over keys in the cache's blocks, the new ones among them

On a CPU with a library they are one call each. Every query row walks blocks of 32 absolute positions in ascending order,
so its result depends on its position, its keys and its values alone: not on the step's other rows, on threads, or on
whether its keys lie in the cache. Elsewhere: the PyTorch definition, equal within rounding (ops/reference/attention.py).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.cpu import library
from vitrail.ops.cpu.kv import dense_rows, pointer, run, supported
from vitrail.ops.kv import BlockTables, LayerKV
from vitrail.ops.reference import attention as reference_attention
from vitrail.ops.segments import Segments


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


def _int32(x: Tensor) -> Tensor:
    return x.to(torch.int32).contiguous()


def _attend(q: Tensor, keys: Tensor, values: Tensor, q_offsets: Tensor, kv_lengths: Tensor, *, causal: bool,
            scale: float, window: int | None, scales: Tensor | None = None, block_table: Tensor | None = None,
            slots: int = 0, block: int = 0) -> Tensor:  # fmt: skip
    """keys, values: (n, G, K), a segment's own rows or all slots of a cache."""
    q, keys, values = dense_rows(q), dense_rows(keys), dense_rows(values)
    offsets, lengths = _int32(q_offsets), _int32(kv_lengths)
    table = None if block_table is None else _int32(block_table)
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
    metadata = AttentionMetadata(_segments(q_offsets, kv_lengths, causal))
    return reference_attention.attention(q, k, v, metadata, scale=scale, window=window)


def _fresh_cpu(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, kv_lengths: Tensor, causal: bool, scale: float,
               window: int | None) -> Tensor:  # fmt: skip
    if not supported(q, k, None) or v.dtype != k.dtype:
        return _fresh_anywhere(q, k, v, q_offsets, kv_lengths, causal, scale, window)
    return _attend(q, k, v, q_offsets, kv_lengths, causal=causal, scale=scale, window=window)


def _slots(q_offsets: Tensor, kv_lengths: Tensor, block_table: Tensor, block: int) -> Tensor:
    """int64 (L,): where each new row lies in the cache."""
    rows = torch.arange(int(q_offsets[-1]), device=q_offsets.device)
    segment = torch.repeat_interleave(torch.arange(len(kv_lengths), device=rows.device), q_offsets.diff())
    position = rows + (kv_lengths - q_offsets[1:])[segment]
    return block_table[segment, position // block].long() * block + position % block


def _cached_anywhere(q: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, block_table: Tensor,
                     q_offsets: Tensor, kv_lengths: Tensor, scale: float, window: int | None) -> Tensor:  # fmt: skip
    kv = LayerKV(keys, values, scales)
    metadata = AttentionMetadata(
        _segments(q_offsets, kv_lengths, True),
        _slots(q_offsets, kv_lengths, block_table, keys.shape[1]),
        BlockTables(block_table, tuple(tuple(row) for row in block_table.tolist())),
    )
    metadata = reference_attention.plan(metadata, kv, q.dtype)
    return reference_attention.attention_cached(q, metadata, scale=scale, kv=kv, window=window)


def _cached_cpu(q: Tensor, keys: Tensor, values: Tensor, scales: Tensor | None, block_table: Tensor,
                q_offsets: Tensor, kv_lengths: Tensor, scale: float, window: int | None) -> Tensor:  # fmt: skip
    whole = keys.is_contiguous() and values.is_contiguous() and (scales is None or scales.is_contiguous())
    if not supported(q, keys, scales) or not whole:
        return _cached_anywhere(q, keys, values, scales, block_table, q_offsets, kv_lengths, scale, window)
    blocks, block = keys.shape[:2]
    return _attend(
        q, keys.flatten(0, 1), values.flatten(0, 1), q_offsets, kv_lengths, causal=True, scale=scale, window=window,
        scales=scales, block_table=block_table, slots=blocks * block, block=block,
    )  # fmt: skip


def _attention_fake(q: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


library.define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor q_offsets, Tensor kv_lengths, bool causal, float scale, "
    "int? window) -> Tensor",
    cpu=_fresh_cpu,
    everywhere=_fresh_anywhere,
    fake=_attention_fake,
)
library.define(
    "attention_cached(Tensor q, Tensor keys, Tensor values, Tensor? scales, Tensor block_table, Tensor q_offsets, "
    "Tensor kv_lengths, float scale, int? window) -> Tensor",
    cpu=_cached_cpu,
    everywhere=_cached_anywhere,
    fake=_attention_fake,
)


attention: Callable[..., Tensor] = torch.ops.vitrail.attention
attention_cached: Callable[..., Tensor] = torch.ops.vitrail.attention_cached


def exp2(x: Tensor) -> Tensor:
    """The kernels' 2^x for x ≤ 0, float32 (n,): for tests. RuntimeError without a library."""
    if library.library() is None:
        raise RuntimeError("there are no kernels")
    kernel = library.function("vt_attention_exp2", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    y = torch.empty_like(x)
    kernel(x.data_ptr(), y.data_ptr(), x.numel())
    return y
