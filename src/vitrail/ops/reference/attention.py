"""Attention in PyTorch: the definition, used with gradients, on other devices and without kernels.

Three paths give the same numbers within rounding, which tests verify:
  • all keys new              → scaled_dot_product_attention, adjacent segments of equal shape in one batched call;
  • one new row, rest cached  → the same over the cached keys, many such sequences in few calls;
  • many new rows after a cache, or a sliding window → online softmax over tiles of absolute positions.
Masks over (new × all) positions or over several images are never built.

Letters: L packed rows · A query heads · G key/value heads · K head width · T new rows · S keys of one segment.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.kv import LayerKV

# Keys per tile, a multiple of every block size, so that tiles begin at fixed absolute positions.
TILE = 1024
# Maximum number of scores in memory; beyond it, queries are split.
SCORES = 1 << 24
# Maximum elements of keys copied for one decoding call, so that they stay in a CPU's cache. A call costs more than the
# arithmetic of a short sequence, but less than the copy of a long one.
COPIED = 1 << 17


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of a decoding batch computed in one call: n rows, S positions of whole blocks.

    Attributes:
        rows: their indices in the batch.
        blocks: int64 (n · blocks per sequence,), their blocks in order.
        bias: (n, 1, 1, S) in q's dtype, 0 at filled positions, else −inf.
        empty: bool (n, block, 1, 1), unfilled positions of the last blocks.
    """

    rows: list[int]
    blocks: Tensor
    bias: Tensor
    empty: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePlan(AttentionMetadata):
    """A decoding batch: groups, and the indices of sequences that are read in place.

    Attributes:
        order: int64 (n,), the rows of all groups concatenated.
    """

    groups: tuple[Group | int, ...]
    order: Tensor


def plan(metadata: AttentionMetadata, kv: LayerKV | None, dtype: torch.dtype) -> AttentionMetadata:
    """Return a DecodePlan if every sequence has one new row, else the metadata unchanged."""
    segments, tables = metadata.segments, metadata.block_tables
    one_each = len(segments) > 1 and segments.q_host == tuple(range(len(segments) + 1))
    if not one_each or kv is None or tables is None or kv.scales is not None or torch.is_grad_enabled():
        return metadata
    groups = tuple(_groups(segments.kv_host, kv, tables.tensor, dtype))
    order = [row for group in groups for row in (group.rows if isinstance(group, Group) else [group])]
    places = torch.tensor(order, device=kv.keys.device)
    return DecodePlan(segments, metadata.slot_mapping, tables, groups=groups, order=places)


def slots_of(metadata: AttentionMetadata) -> Tensor:
    """Return the slots of the batch's rows; InputError if the batch was built without a cache."""
    if metadata.slot_mapping is None:
        raise InputError(
            "a cache was passed, but the batch was built without one; build_batch(cache=) makes it."
        )
    return metadata.slot_mapping


def read(
    kv: LayerKV | None, metadata: AttentionMetadata, segment: int, start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """Return cached keys and values of one segment; InputError without a cache."""
    if kv is None or metadata.block_tables is None:
        past = metadata.segments.past_length(segment)
        raise InputError(f"the segments count {past} cached keys, but no cache was passed.")
    return kv.read(metadata.block_tables, segment, start, stop)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    metadata: AttentionMetadata,
    *,
    scale: float,
    kv: LayerKV | None = None,
    window: int | None = None,
) -> Tensor:
    """Compute AttentionPlan.attend for new rows that are already cached: (L, A, K)."""
    segments = metadata.segments
    if isinstance(metadata, DecodePlan) and kv is not None and _whole_past(metadata, window):
        return _decode_rows(q, metadata, scale, kv)
    pieces: list[Tensor] = []
    for first, count in segments.runs():
        new, total = segments.query_length(first), segments.kv_host[first]
        if new == 0:
            continue
        start = segments.q_host[first]
        rows = slice(start, start + count * new)
        windowed = window is not None and segments.causal and total > window
        if new == total and not windowed:
            pieces.append(_fresh(q[rows], k[rows], v[rows], count, scale, segments.causal))
            continue
        for index in range(first, first + count):
            here = slice(segments.q_host[index], segments.q_host[index] + new)
            tile_window = window if windowed else None
            pieces.append(_after_cache(q[here], k[here], v[here], index, metadata, scale, kv, tile_window))
    if not pieces:
        return q.new_empty(q.shape)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def attention_cached(
    q: Tensor, metadata: AttentionMetadata, *, scale: float, kv: LayerKV, window: int | None = None
) -> Tensor:
    """Compute `attention` with the new rows' keys and values as cached, too."""
    if isinstance(metadata, DecodePlan) and _whole_past(metadata, window):
        return _decode_rows(q, metadata, scale, kv)
    k, v = kv.at(slots_of(metadata), q.dtype)
    return attention(q, k, v, metadata, scale=scale, kv=kv, window=window)


def _fresh(q: Tensor, k: Tensor, v: Tensor, count: int, scale: float, causal: bool) -> Tensor:
    """Compute attention of `count` segments of equal length without cached keys: (count·T, A, K)."""
    batched = [x.reshape(count, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]  # (count, heads, T, K)
    out = F.scaled_dot_product_attention(
        batched[0],
        _repeat(batched[1], q.shape[1]),
        _repeat(batched[2], q.shape[1]),
        is_causal=causal and batched[0].shape[2] > 1,
        scale=scale,
    )
    return out.transpose(1, 2).flatten(0, 1)


def _repeat(x: Tensor, heads: int) -> Tensor:
    """Expand (n, G, S, K) to (n, A, S, K): each key/value head serves A/G query heads."""
    groups = x.shape[1]
    return x if groups == heads else x.repeat_interleave(heads // groups, dim=1)


def _whole_past(metadata: AttentionMetadata, window: int | None) -> bool:
    """Return whether every row attends to all keys of its segment, without gradients."""
    fits = window is None or max(metadata.segments.kv_host) <= window
    return fits and not torch.is_grad_enabled()


def _decode_rows(q: Tensor, metadata: DecodePlan, scale: float, kv: LayerKV) -> Tensor:
    """Compute softmax attention of q (n, A, K), row i over all positions of segment i: (n, A, K).

    Sequences with equal numbers of blocks share one call on copies of their blocks. The shape of a sequence's call depends
    only on its own number of blocks, so its result is independent of the other sequences.
    """
    pieces, start, sorted_q = [], 0, q[metadata.order]
    for group in metadata.groups:
        if isinstance(group, Group):
            pieces.append(_together(sorted_q[start : start + len(group.rows)], group, scale, kv))
        else:
            pieces.append(_decode_row(sorted_q[start : start + 1], group, metadata, scale, kv))
        start += len(pieces[-1])
    return torch.empty_like(q).index_copy_(0, metadata.order, torch.cat(pieces))


def _decode_row(q: Tensor, segment: int, metadata: AttentionMetadata, scale: float, kv: LayerKV) -> Tensor:
    """Compute attention of q (1, A, K) over all positions of one segment: (1, A, K)."""
    keys, values = read(kv, metadata, segment, 0, metadata.segments.kv_host[segment])
    out = F.scaled_dot_product_attention(
        grouped(q, keys.shape[1])[0][None],  # query heads of one group share their keys
        keys.to(q.dtype).transpose(0, 1)[None],
        values.to(q.dtype).transpose(0, 1)[None],
        scale=scale,
    )
    return out.flatten(1, 2)


def _together(q: Tensor, group: Group, scale: float, kv: LayerKV) -> Tensor:
    """Compute attention of q (n, A, K) for the sequences of one group: (n, A, K)."""
    keys, values = (_copy(stored, group).to(q.dtype) for stored in (kv.keys, kv.values))
    out = F.scaled_dot_product_attention(
        grouped(q, keys.shape[1]), keys, values, attn_mask=group.bias, scale=scale
    )
    return out.flatten(1, 2)


def _copy(stored: Tensor, group: Group) -> Tensor:
    """Gather the group's sequences from one storage (blocks, block, G, K): (n, G, S, K)."""
    blocks = stored.index_select(0, group.blocks).reshape(len(group.rows), -1, *stored.shape[1:])
    blocks[:, -1].masked_fill_(group.empty, 0)  # never written, may be NaN
    return blocks.flatten(1, 2).transpose(1, 2)


def _groups(totals: tuple[int, ...], kv: LayerKV, table: Tensor, dtype: torch.dtype) -> Iterator[Group | int]:
    """Yield groups, and the indices of sequences that are read in place; together all sequences."""
    block, width = kv.keys.shape[1], kv.keys[0, 0].numel()
    by_blocks: dict[int, list[int]] = {}
    for row, total in enumerate(totals):
        by_blocks.setdefault(-(-total // block), []).append(row)
    for count, rows in by_blocks.items():
        at_once = COPIED // (count * block * width)
        if at_once < 2:
            yield from rows
            continue
        for start in range(0, len(rows), at_once):
            yield _group(rows[start : start + at_once], totals, table[:, :count], kv, dtype)


def _group(rows: list[int], totals: tuple[int, ...], table: Tensor, kv: LayerKV, dtype: torch.dtype) -> Group:
    block, device, count = kv.keys.shape[1], kv.keys.device, table.shape[1]
    lengths = torch.tensor([totals[row] for row in rows], device=device)[:, None]
    hidden = torch.arange(count * block, device=device) >= lengths  # (n, S)
    bias = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))
    return Group(rows, table[rows].flatten().long(), bias[:, None, None], hidden[:, -block:, None, None])


def _after_cache(q: Tensor, k: Tensor, v: Tensor, index: int, metadata: AttentionMetadata, scale: float,
                 kv: LayerKV | None, window: int | None) -> Tensor:  # fmt: skip
    """Compute attention of one segment of T new rows after S−T cached ones: (T, A, K)."""
    new = q.shape[0]
    if new == 1 and window is None and kv is not None and not torch.is_grad_enabled():
        return _decode_row(q, index, metadata, scale, kv)
    step = max(64, SCORES // (q.shape[1] * TILE))
    parts = [
        _tiled(q[at : at + step], k, v, at, index, metadata, scale, kv, window) for at in range(0, new, step)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _tiled(q: Tensor, k: Tensor, v: Tensor, offset: int, index: int, metadata: AttentionMetadata, scale: float,
           kv: LayerKV | None, window: int | None) -> Tensor:  # fmt: skip
    """Compute online softmax of rows from `offset` on, in one segment, over tiles of keys at fixed absolute positions.

    Cached keys come from `kv`, the step's own from k, v, so that gradients reach them.
    """
    past = metadata.segments.past_length(index)
    position = past + offset  # of the first query row
    wide = torch.promote_types(q.dtype, torch.float32)
    queries = grouped(q, k.shape[1]).permute(1, 2, 0, 3).to(wide) * scale  # (G, A/G, T, K)
    best = queries.new_full(queries.shape[:3], float("-inf"))
    norm = torch.zeros_like(best)
    out = torch.zeros_like(queries)
    stop = position + q.shape[0]
    start = 0 if window is None else max(0, position - window + 1)
    for at in _tiles(start, past, stop):
        keys, values = _keys(k, v, at, index, metadata, kv)
        scores = torch.einsum("ghtk,sgk->ghts", queries, keys.to(wide))
        if at[1] > position + 1 or window is not None:
            hidden = unseen(position, q.shape[0], at[0], at[1], window, q.device)
            scores = scores.masked_fill(hidden, float("-inf"))
        higher = torch.maximum(best, scores.amax(dim=-1))
        anchor = higher.masked_fill(higher.isinf(), 0.0)  # rows without a visible key so far
        weights = torch.exp(scores - anchor[..., None])
        fade = torch.exp(best - anchor)
        norm = norm * fade + weights.sum(dim=-1)
        out = out * fade[..., None] + torch.einsum("ghts,sgk->ghtk", weights, values.to(wide))
        best = higher
    return (out / norm[..., None]).permute(2, 0, 1, 3).flatten(1, 2).to(q.dtype)


def _tiles(start: int, past: int, stop: int) -> list[tuple[int, int]]:
    """Split absolute positions start … stop at multiples of TILE and at the end of the cache."""
    cuts = sorted({start, stop, *range(-(-start // TILE) * TILE, stop, TILE), min(max(past, start), stop)})
    return list(pairwise(cuts))


def _keys(k: Tensor, v: Tensor, at: tuple[int, int], index: int, metadata: AttentionMetadata,
          kv: LayerKV | None) -> tuple[Tensor, Tensor]:  # fmt: skip
    past = metadata.segments.past_length(index)
    if at[0] >= past:
        return k[at[0] - past : at[1] - past], v[at[0] - past : at[1] - past]
    keys, values = read(kv, metadata, index, at[0], at[1])
    if torch.is_grad_enabled():  # a later step overwrites what this step's backward pass needs
        return keys.clone(), values.clone()
    return keys, values


def unseen(
    position: int, rows: int, start: int, stop: int, window: int | None, device: torch.device
) -> Tensor:
    """Return which keys are masked: bool (rows, stop−start), True where a row must not attend to a key.

    Args:
        position: of the first row.
        rows: number of rows.
        start, stop: positions of the keys.
        window: maximum number of keys per row, itself included; None: all.
        device: of the result.
    """
    row = torch.arange(position, position + rows, device=device)[:, None]
    key = torch.arange(start, stop, device=device)[None, :]
    hidden = key > row
    if window is not None:
        hidden = hidden | (key <= row - window)
    return hidden


def grouped(q: Tensor, groups: int) -> Tensor:
    """Reshape (T, A, K) to (T, G, A/G, K)."""
    return q.reshape(q.shape[0], groups, -1, q.shape[2])
