"""ForwardBatch: inputs of one decoder pass besides the hidden states. build_batch() is its only constructor.

Used by the runner in generate/, for any mix of prefill chunks and decoding rows; reserved for a scheduler in engine/core.

Letters: L packed rows · n segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vitrail.errors import CacheFull
from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.kv import BlockTables
from vitrail.ops.segments import Segments


class BlockCache(Protocol):
    """The part of a cache that a batch uses; kv/cache.py implements it."""

    def length(self, sequence: int) -> int:
        """Return the number of positions of a sequence."""

    def allocate(self, sequence: int, rows: int) -> list[int]:
        """Lengthen a sequence; return the slots of its new rows."""

    def blocks(self, sequence: int) -> tuple[int, ...]:
        """Return a sequence's blocks in order."""

    def truncate(self, sequence: int, length: int) -> None:
        """Drop all positions from `length` on."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One pass over L packed rows: any mix of prefill chunks and decoding sequences.

    Attributes:
        positions: int64 (L,), absolute 0-based positions for the rotary embedding.
        attention: segments, slots and block tables, as attention takes them.
        sequences: cache sequence of each segment; () without a cache.
        logits_indices: int64 (n,), rows to compute logits for; None: all.
        adapter_indices: int64 (L,), adapter of each row. Reserved for the engine: no layer reads it yet, and the decoder
            rejects a batch that has it. None: the adapters active on the model, for all rows.
    """

    positions: Tensor
    attention: AttentionMetadata
    sequences: tuple[int, ...] = ()
    logits_indices: Tensor | None = None
    adapter_indices: Tensor | None = None

    @property
    def segments(self) -> Segments:
        """Row ranges of the sequences, with cu_seqlens_q and seq_lens_k."""
        return self.attention.segments

    @property
    def slot_mapping(self) -> Tensor | None:
        """int64 (L,), cache slots of the new rows."""
        return self.attention.slot_mapping

    @property
    def block_tables(self) -> BlockTables | None:
        """Blocks of each segment."""
        return self.attention.block_tables


def build_batch(
    lengths: Sequence[int],
    *,
    cache: BlockCache | None = None,
    sequences: Sequence[int] = (),
    positions: Tensor | None = None,
    logits_indices: "Sequence[int] | Tensor | None" = None,
    adapter_indices: Tensor | None = None,
    device: torch.device | str | None = None,
) -> ForwardBatch:
    """Build a batch of `lengths` new rows per sequence; with a cache, allocate their blocks.

    Args:
        lengths: new rows of each sequence.
        cache, sequences: cache for the new keys and values, and its sequences, which the rows continue.
        positions: int64 (L,); None: counted from the cached positions.
        logits_indices: rows to compute logits for; None: all.
        adapter_indices: int64 (L,), see ForwardBatch.
        device: of the batch's tensors.

    Raises:
        CacheFull: too few free blocks; no sequence was lengthened.
    """
    past, attention = [0] * len(lengths), None
    if cache is not None:
        past = [cache.length(sequence) for sequence in sequences]
        slots = _allocate(cache, sequences, lengths, past)
        host = tuple(cache.blocks(sequence) for sequence in sequences)
        widest = max(map(len, host), default=0)
        padded = [(*blocks, *[0] * (widest - len(blocks))) for blocks in host]
        table = torch.tensor(padded, dtype=torch.int32, device=device).reshape(len(host), widest)
        attention = AttentionMetadata(
            Segments.new(lengths, past, device=device),
            torch.tensor(slots, dtype=torch.int64, device=device),
            BlockTables(table, host),
        )
    if positions is None:
        counted = [at for old, new in zip(past, lengths, strict=True) for at in range(old, old + new)]
        positions = torch.tensor(counted, dtype=torch.int64, device=device)
    if logits_indices is not None and not isinstance(logits_indices, Tensor):
        logits_indices = torch.tensor(logits_indices, dtype=torch.int64, device=device)
    return ForwardBatch(
        positions=positions,
        attention=attention or AttentionMetadata(Segments.new(lengths, device=device)),
        sequences=tuple(sequences),
        logits_indices=logits_indices,
        adapter_indices=adapter_indices,
    )


def _allocate(
    cache: BlockCache, sequences: Sequence[int], lengths: Sequence[int], past: Sequence[int]
) -> list[int]:
    """Return the slots of all new rows, lengthening all sequences or none."""
    slots: list[int] = []
    for number, (sequence, rows) in enumerate(zip(sequences, lengths, strict=True)):
        try:
            slots += cache.allocate(sequence, rows)
        except CacheFull:
            for done, length in zip(sequences[:number], past, strict=False):
                cache.truncate(done, length)
            raise
    return slots
