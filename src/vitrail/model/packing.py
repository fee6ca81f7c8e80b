"""Packed: conversion between (B, T) and packed rows.

Padding is dropped, not masked: a row of a padded batch has exactly the values of the row alone.
Letters: B conversations · T new positions · S cached + new · L packed rows · V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.configs import MistralConfig
from vitrail.errors import ContextError, InputError, UnsupportedError
from vitrail.kv.blocks import BLOCK
from vitrail.kv.cache import KVCache
from vitrail.kv.foreign import is_foreign, read_foreign, update_foreign
from vitrail.model.training import per_item
from vitrail.ops.batch import ForwardBatch, build_batch
from vitrail.ops.segments import Segments

IGNORED = -100  # label without loss, transformers' value


@dataclass(frozen=True)
class Packed:
    """The packing of one forward() call.

    Attributes:
        batch, new: B and T.
        kept: bool (B, T), the new positions without padding; all_kept: bool (B, S), with the cached ones.
        index: int64 (L,), place of each row in the flattened (B·T).
        lengths: new rows of each sequence; a conversation is one, or several where position_ids restart;
        positions: int64 (L,). cache: None without a cache.
    """

    batch: int
    new: int
    kept: Tensor
    all_kept: Tensor
    index: Tensor
    lengths: list[int]
    positions: Tensor
    cache: KVCache | None

    def forward_batch(self, logits_indices: Tensor | None) -> ForwardBatch:
        """Return the batch of these rows and allocate their cache slots."""
        return build_batch(
            self.lengths,
            cache=self.cache,
            sequences=() if self.cache is None else self.cache.sequences,
            positions=self.positions,
            logits_indices=logits_indices,
            device=self.index.device,
        )

    def record_ids(self, ids: Tensor) -> None:
        """Record the ids (B, T) of these rows in the cache, once it holds them."""
        if self.cache is None or ids.is_meta:
            return
        for sequence, row, kept in zip(self.cache.sequences, ids.cpu(), self.kept.cpu(), strict=True):
            new = row[kept].tolist()
            self.cache.record_ids(sequence, new, self.cache.length(sequence) - len(new))

    def keep_ids(self, ids: Tensor | None, past: Any) -> None:
        """Record the ids of the rows now in the cache, and append them to a cache of transformers (`past`)."""
        if ids is not None:
            self.record_ids(ids)
        if self.cache is not None and is_foreign(past):
            update_foreign(past, self.cache)

    def scatter(self, rows: Tensor) -> Tensor:
        """Scatter rows (L, …) → (B, T, …), zero at padding."""
        if len(rows) == self.batch * self.new:
            return rows.view(self.batch, self.new, *rows.shape[1:])
        out = rows.new_zeros(self.batch * self.new, *rows.shape[1:])
        return out.index_copy(0, self.index, rows).view(self.batch, self.new, *rows.shape[1:])

    def scatter_weights(self, per_segment: Sequence[Tensor]) -> Tensor:
        """Scatter attention weights, per segment (A, T', S') → (B, A, T, S), zero at padding."""
        first = per_segment[0]
        out = first.new_zeros(self.batch, first.shape[0], self.new, self.all_kept.shape[1])
        if len(per_segment) > self.batch:  # several sequences in a row, without a cache
            for places, weights in zip(torch.split(self.index, self.lengths), per_segment, strict=True):
                columns = places % self.new
                out[int(places[0]) // self.new, :, columns[:, None], columns[None, :]] = weights
            return out
        for row, weights in enumerate(per_segment):
            queries = self.kept[row].nonzero().squeeze(1)
            keys = self.all_kept[row].nonzero().squeeze(1)
            out[row, :, queries[:, None], keys[None, :]] = weights
        return out

    def gather(self, laid_out: Tensor) -> Tensor:
        """Gather (B, T, …) → rows (L, …) without padding."""
        rows = laid_out.flatten(0, 1)
        return rows if len(self.index) == len(rows) else rows[self.index]

    def gather_weights(self, laid_out: Tensor) -> list[Tensor]:
        """Gather attention weights (B, A, T, S) → per segment (A, T', S')."""
        return [laid_out[row][:, self.kept[row]][:, :, self.all_kept[row]] for row in range(self.batch)]

    def select(self, logits_to_keep: "int | Tensor") -> tuple[Tensor | None, Tensor | None]:
        """Return the rows with logits and their places in (B, kept positions); None, None for all.

        `logits_to_keep` is a number of last positions (0: all) or a 1-D tensor of positions.
        """
        columns = torch.arange(self.new, device=self.index.device)
        if isinstance(logits_to_keep, Tensor):
            columns = columns[logits_to_keep.to(columns.device)]
        elif logits_to_keep:
            columns = columns[-logits_to_keep:]
        elif len(self.index) == self.batch * self.new:
            return None, None
        row_at = torch.full((self.batch * self.new,), -1, dtype=torch.int64, device=self.index.device)
        row_at[self.index] = torch.arange(len(self.index), device=self.index.device)
        rows = row_at.view(self.batch, self.new)[:, columns]
        return rows[rows >= 0], rows

    def place(self, logits: Tensor, places: Tensor | None) -> Tensor:
        """Scatter logits of the selected rows → (B, kept positions, V), zero at padding."""
        if places is None:
            return logits.view(self.batch, self.new, -1)
        if logits.shape[0] == places.numel():
            return logits.view(*places.shape, -1)
        out = logits.new_zeros(places.numel(), logits.shape[-1])
        where = (places.flatten() >= 0).nonzero().squeeze(1)
        return out.index_copy(0, where, logits).view(*places.shape, -1)


def pack(
    batch: int,
    new: int,
    config: MistralConfig,
    *,
    device: torch.device,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache_position: Tensor | None,
    past: "KVCache | Sequence[tuple[Tensor, Tensor]] | None",
    use_cache: bool,
    dtype: torch.dtype,
) -> Packed:
    """Check the arguments of forward() against each other and pack them.

    Without a mask and a cache, position_ids that restart within a row begin another sequence (padding-free training),
    which does not attend to the one before; such a call creates no cache.

    Raises:
        InputError: a mask, positions or cache that do not fit. ContextError: too many positions for the model.
    """
    cache = _open_cache(past, config, attention_mask, batch)
    seen = torch.zeros(batch, 0, dtype=torch.bool) if cache is None else cache.kept().cpu()
    kept = _new_mask(attention_mask, seen, batch, new).to(device)
    past_lengths = [0] * batch if cache is None else [cache.length(s) for s in cache.sequences]
    if not bool(kept.any()):
        raise InputError("attention_mask leaves no position; give every conversation some text.")
    segments, index = Segments.from_mask(kept, past_lengths, device=device)
    lengths = [segments.query_length(row) for row in range(batch)]
    if cache is None and attention_mask is None and (parts := joined(position_ids, batch, new)):
        segments, lengths, use_cache = Segments.new(parts, device=device), parts, False
    longest = max(segments.kv_host, default=0)
    if longest > config.max_position_embeddings:
        raise ContextError(
            f"the context has {longest} positions, the model {config.max_position_embeddings}; shorten the conversation "
            "or use smaller images."
        )
    _check_cache_position(cache_position, seen.shape[1], new)
    positions = _positions(position_ids, kept, past_lengths, index, batch, new)
    if use_cache and cache is None:
        rooms = [length + BLOCK for length in segments.kv_host]
        cache = KVCache.sized(config, rooms, dtype=dtype, device=device)
        for room in rooms:
            cache.open(room=room)
    all_kept = torch.cat([seen.to(device), kept], dim=1)
    if cache is not None:
        _make_room(cache, segments.kv_host)
        cache.mask = all_kept.cpu()
    return Packed(batch, new, kept, all_kept, index, lengths, positions, cache)


def _open_cache(
    past: "KVCache | Sequence[tuple[Tensor, Tensor]] | None",
    config: MistralConfig,
    mask: Tensor | None,
    batch: int,
) -> KVCache | None:
    if is_foreign(past):
        past = read_foreign(past)
    if past is None or (isinstance(past, Sequence) and len(past) == 0):
        return None
    if not isinstance(past, KVCache):
        pairs = past
        try:
            positions = past[0][0].shape[2]
        except (TypeError, IndexError, KeyError, AttributeError):
            raise InputError(
                "past_key_values must be the cache that forward() returned or a tuple of (key, value) per layer, "
                f"got {type(past).__name__}."
            ) from None
        _refuse_trained_cache(pairs)
        past = KVCache.from_legacy(pairs, config, None if mask is None else mask[:, :positions])
    past.check_geometry(config)
    if len(past.sequences) != batch:
        raise InputError(f"past_key_values holds {len(past.sequences)} conversations, the input {batch}.")
    return past


def _refuse_trained_cache(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for pair in pairs for tensor in pair):
        raise UnsupportedError(
            "past_key_values needs gradients (PEFT's prefix tuning trains it), and they do not go through a cache here; "
            "use LoRA or prompt tuning, or torch.no_grad()."
        )


def _new_mask(mask: Tensor | None, seen: Tensor, batch: int, new: int) -> Tensor:
    """Return the mask of the new positions, bool (B, T); its cached part must equal the cached mask."""
    if mask is None:
        return torch.ones(batch, new, dtype=torch.bool)
    if mask.dim() != 2:
        raise UnsupportedError(
            f"an attention_mask of {mask.dim()} dimensions is not supported; give (batch, positions) of 0 and 1."
        )
    past = seen.shape[1]
    if tuple(mask.shape) != (batch, past + new):
        raise InputError(
            f"attention_mask has the shape {tuple(mask.shape)}, expected {(batch, past + new)}: "
            f"{past} cached and {new} new positions."
        )
    kept = mask != 0
    if past and not torch.equal(kept[:, :past].cpu(), seen):
        raise InputError(
            "attention_mask differs from the one that past_key_values was made with; cached rows cannot change."
        )
    return kept[:, past:]


def _check_cache_position(cache_position: Tensor | None, past: int, new: int) -> None:
    if cache_position is None:
        return
    expected = torch.arange(past, past + new)
    if not torch.equal(cache_position.cpu(), expected):
        raise InputError(
            f"cache_position must count from {past} to {past + new - 1}: {past} positions are cached and {new} are new."
        )


def joined(position_ids: Tensor | None, batch: int, new: int) -> list[int]:
    """Return the lengths of sequences packed one after another in the rows; [] where each row is one."""
    if not isinstance(position_ids, Tensor) or position_ids.is_meta:
        return []
    position_ids = position_ids[None] if position_ids.dim() == 1 else position_ids
    if position_ids.shape not in ((1, new), (batch, new)):
        return []
    begins = torch.ones(batch, new, dtype=torch.bool)
    begins[:, 1:] = (position_ids.diff(dim=-1) != 1).cpu()
    starts = begins.flatten().nonzero().squeeze(1)
    if len(starts) == batch:
        return []
    ends = torch.cat([starts[1:], torch.tensor([batch * new])])
    lengths: list[int] = (ends - starts).tolist()
    return lengths


def _positions(
    position_ids: Tensor | None, kept: Tensor, past: Sequence[int], index: Tensor, batch: int, new: int
) -> Tensor:
    """Return int64 (L,): the given positions, or counted without padding."""
    if position_ids is not None:
        if position_ids.dim() == 1:
            position_ids = position_ids[None]
        if position_ids.shape not in ((1, new), (batch, new)):
            raise InputError(
                f"position_ids has the shape {tuple(position_ids.shape)}, expected {(batch, new)}."
            )
        return position_ids.expand(batch, new).flatten().to(index.device)[index].long()
    counted = kept.long().cumsum(dim=1) - 1 + torch.tensor(list(past), device=kept.device)[:, None]
    return counted.flatten()[index]


def _make_room(cache: KVCache, totals: Sequence[int]) -> None:
    """Allocate blocks for sequences of these lengths; the cache grows by halves, so that it is seldom moved."""
    needed = sum(-(-length // cache.block) for length in totals)
    have = sum(-(-cache.length(s) // cache.block) for s in cache.sequences)
    if needed - have > cache.free_blocks:
        cache.grow(max(needed - have, needed // 2))


def check_keep(logits_to_keep: "int | Tensor", new: int) -> None:
    """Raise InputError unless `logits_to_keep` is a number or a tensor of positions below T."""
    if not isinstance(logits_to_keep, Tensor):
        return
    if logits_to_keep.dim() != 1 or logits_to_keep.is_floating_point():
        raise InputError(
            f"logits_to_keep must be a number or a 1-D tensor of positions, got {logits_to_keep.dtype} of "
            f"{logits_to_keep.dim()} dimensions."
        )
    if logits_to_keep.dtype == torch.bool:
        if len(logits_to_keep) != new:
            raise InputError(f"logits_to_keep marks {len(logits_to_keep)} positions, there are {new}.")
    elif len(logits_to_keep) and not (int(logits_to_keep.min()) >= -new and int(logits_to_keep.max()) < new):
        raise InputError(
            f"logits_to_keep {logits_to_keep.tolist()} names a position outside the {new} new ones."
        )


def check_labels(labels: Tensor, shape: tuple[int, int], vocabulary: int) -> None:
    """Raise InputError or ContextError unless labels have the shape (B, T) and are ids or −100."""
    if tuple(labels.shape) != shape:
        raise InputError(f"labels have the shape {tuple(labels.shape)}, expected {shape}.")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise InputError(f"labels must be integers, got {labels.dtype}.")
    asked = labels[labels != IGNORED]
    if len(asked) and not (int(asked.min()) >= 0 and int(asked.max()) < vocabulary):
        raise ContextError(
            f"labels go from {int(asked.min())} to {int(asked.max())}; the vocabulary has {vocabulary} ids."
        )


def next_token_loss(
    logits: Tensor, labels: Tensor, kept: Tensor, items: "int | Tensor | None" = None
) -> Tensor:
    """Return the mean cross-entropy of each label given the position before it, in float32.

    Args:
        logits: (B, T, V). labels: (B, T), −100 without loss. kept: bool (B, T), False at padding.
        items: divisor of the sum, in place of the number of labels (a trainer's num_items_in_batch).
    """
    targets = labels[:, 1:].to(logits.device, torch.long).masked_fill(~kept[:, :-1], IGNORED)
    how = "mean" if items is None else "sum"
    rows = logits[:, :-1].float().flatten(0, 1)
    loss = F.cross_entropy(rows, targets.flatten(), ignore_index=IGNORED, reduction=how)
    return loss if items is None else per_item(loss, items)
