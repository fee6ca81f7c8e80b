"""The only attention: packed rows, segment by segment. Projections, rotation and who owns the cache live elsewhere.

Without gradients, on a CPU and where shapes alone matter (the meta device), it is one operator: a kernel, or where there
is none its definition (ops/cpu/attention.py). Elsewhere it is the definition itself (ops/reference/attention.py), which
has the step's lengths on the host and never waits for a device.

Letters: L packed rows · A query heads · G key/value heads · K head width · T new rows · S keys of one segment.
"""

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.cpu import attention as cpu_attention
from vitrail.ops.kv import LayerKV
from vitrail.ops.reference import attention as reference_attention
from vitrail.ops.segments import Segments


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Segments,
    *,
    scale: float,
    kv: LayerKV | None = None,
    window: int | None = None,
) -> Tensor:
    """Softmax attention of packed rows within their segments.

    Args:
        q: (L, A, K). k, v: (L, G, K), the new rows; G divides A.
        segments: which rows belong together; with cached keys also how many.
        scale: factor of the scores before the softmax.
        kv: the layer's cache. New rows are written first; keys are what the cache holds, in its precision.
        window: a row sees at most this many keys, itself included (None: all).

    Returns:
        (L, A, K) in q's dtype.
    """
    if kv is not None:
        kv.write(k, v)
    elif segments.q_host[-1] != sum(segments.kv_host):
        raise InputError(f"the segments count {_past(segments)} cached keys, but no cache was passed.")
    window = window if segments.causal else None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        if kv is not None and kv.keys.dtype != k.dtype:
            k, v = (x + (held - x).detach() for x, held in zip((k, v), kv.written(k.dtype), strict=True))
        return reference_attention.attention(q, k, v, segments, scale=scale, kv=kv, window=window)
    if q.device.type not in ("cpu", "meta"):
        if kv is None:
            return reference_attention.attention(q, k, v, segments, scale=scale, window=window)
        return reference_attention.attention_cached(q, segments, scale=scale, kv=kv, window=window)
    offsets, lengths = segments.q_offsets, segments.kv_lengths
    if kv is None:
        return cpu_attention.attention(q, k, v, offsets, lengths, segments.causal, scale, window)
    return cpu_attention.attention_cached(
        q, kv.keys, kv.values, kv.scales, kv.block_table, offsets, lengths, scale, window
    )


def _past(segments: Segments) -> int:
    return sum(segments.kv_host) - segments.q_host[-1]


def attention_weights(q: Tensor, k: Tensor, segments: Segments, *, scale: float, kv: LayerKV | None = None,
                      window: int | None = None) -> list[Tensor]:  # fmt: skip
    """The softmax itself, per segment (A, T, S) in q's dtype: what `output_attentions` shows. Quadratic by nature."""
    found = []
    for index in range(len(segments)):
        new, total = segments.query_length(index), segments.kv_host[index]
        rows = slice(segments.q_host[index], segments.q_host[index] + new)
        keys = (
            k[rows]
            if new == total
            else reference_attention.cached(kv, total - new).read(index, 0, total)[0].to(q.dtype)
        )
        scores = (
            torch.einsum("tghk,sgk->ghts", reference_attention.grouped(q[rows], keys.shape[1]), keys) * scale
        )
        if segments.causal:
            scores = scores.masked_fill(
                reference_attention.unseen(total - new, new, 0, total, window, q.device), float("-inf")
            )
        found.append(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype).flatten(0, 1))
    return found
