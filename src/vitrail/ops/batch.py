"""ForwardBatch: what one pass of the decoder needs beside its hidden states. build_batch() is the only maker.

The runner of generate/ calls it; a scheduler of engine/core (reserved) would, for prompts' chunks and decoding rows alike.

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
    """What a batch needs of a cache: kv/cache.py has it."""

    def length(self, sequence: int) -> int:
        """Positions of a sequence."""

    def allocate(self, sequence: int, rows: int) -> list[int]:
        """Lengthen a sequence; the slots of its new rows."""

    def blocks(self, sequence: int) -> tuple[int, ...]:
        """A sequence's blocks in order."""

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all positions from `length` on."""


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One pass over L packed rows: any mix of prompts' chunks and decoding sequences.

    Attributes:
        positions: int64 (L,), absolute 0-based positions for the rotary embedding.
        attention: rows that belong together, slots and block tables, as attention takes them.
        sequences: the cache's sequence of each segment; () when nothing is cached.
        logits_indices: int64 rows whose logits are wanted; None: all.
        adapter_indices: int64 (L,), the adapter of each row; carried for the engine, no layer reads it yet: a decoder
            refuses a batch that has it. None: the adapters that are set on the model, for all rows.
    """

    positions: Tensor
    attention: AttentionMetadata
    sequences: tuple[int, ...] = ()
    logits_indices: Tensor | None = None
    adapter_indices: Tensor | None = None

    @property
    def segments(self) -> Segments:
        """Which rows belong together, with cu_seqlens_q and seq_lens_k."""
        return self.attention.segments

    @property
    def slot_mapping(self) -> Tensor | None:
        """int64 (L,), where the new rows go in the cache."""
        return self.attention.slot_mapping

    @property
    def block_tables(self) -> BlockTables | None:
        """Each segment's blocks."""
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
    """A batch of `lengths` new rows of each sequence; with a cache their blocks are allocated.

    Args:
        cache, sequences: where the rows' keys and values go; each sequence goes on after what it has cached.
        positions: int64 (L,); None: counted after what is cached.

    Raises:
        CacheFull: the cache has not enough blocks; no sequence was lengthened.
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
    """The slots of all new rows; all sequences are lengthened or none."""
    slots: list[int] = []
    for number, (sequence, rows) in enumerate(zip(sequences, lengths, strict=True)):
        try:
            slots += cache.allocate(sequence, rows)
        except CacheFull:
            for done, length in zip(sequences[:number], past, strict=False):
                cache.truncate(done, length)
            raise
    return slots
