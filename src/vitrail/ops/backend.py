"""Interface of an attention backend, with its inputs AttentionMetadata and BlockWeights. The table: backends.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vitrail.ops.kv import BlockTables, LayerKV
from vitrail.ops.segments import Segments
from vitrail.ops.weight import Weight


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Attention inputs of a batch, the same for all layers. A backend's plan() may return a subclass with more fields.

    Attributes:
        segments: row ranges of the sequences, and the number of keys each attends to.
        slot_mapping: int64 (L,), cache slots of the new rows (block · positions per block + offset).
        block_tables: blocks of each segment. Both are None without a cache.
    """

    segments: Segments
    slot_mapping: Tensor | None = None
    block_tables: BlockTables | None = None

    def to(self, device: torch.device) -> "AttentionMetadata":
        """Return a copy on another device."""
        segments, tables = self.segments, self.block_tables
        if segments.cu_seqlens_q.device == device:
            return self
        offsets, lengths = segments.cu_seqlens_q.to(device), segments.seq_lens_k.to(device)
        return AttentionMetadata(
            replace(segments, cu_seqlens_q=offsets, seq_lens_k=lengths),
            None if self.slot_mapping is None else self.slot_mapping.to(device),
            None if tables is None else replace(tables, tensor=tables.tensor.to(device)),
        )


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """Weights of one decoder block: norms (D,), matrices (out, in) without biases; matrices of a field share their input."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: tuple[Weight, Weight, Weight]
    out: tuple[Weight]
    gate_up: tuple[Weight, Weight]
    down: tuple[Weight]

    def products(self) -> tuple[tuple[Weight, ...], ...]:
        """The four products, in order of computation."""
        return self.qkv, self.out, self.gate_up, self.down

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of both norms, then (out, in) of every matrix."""
        matrices = (weight for weights in self.products() for weight in weights)
        return tuple(tuple(x.shape) for x in (self.attention_norm, self.mlp_norm, *matrices))


class DecoderBlocks(Protocol):
    """All blocks of one decoder in one call, bit for bit equal to the layers one by one."""

    plain: bool
    """Whether some matrix is not packed."""

    def pays(self, hidden: Tensor, weight: Tensor) -> bool:
        """Return whether the call is faster than the layers for these rows, given a matrix that is not packed."""

    def run(
        self,
        hidden: Tensor,
        rope: tuple[Tensor, Tensor, Tensor | None],
        metadata: AttentionMetadata,
        layers: Sequence[LayerKV],
        *,
        heads: int,
        scale: float,
        window: int | None,
    ) -> Tensor | None:
        """Compute hidden (L, D) through all blocks, caching new keys and values; None if unsupported: nothing was done."""


class AttentionBackend(Protocol):
    """Attention on one type of device, and whole decoder blocks where it can fuse them."""

    def plan(self, metadata: AttentionMetadata, kv: LayerKV | None, dtype: torch.dtype) -> AttentionMetadata:
        """Return the metadata for attend(), computed once per batch and device.

        Args:
            metadata: of the batch.
            kv: one layer's cache; all layers have the same shapes.
            dtype: of the queries.
        """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kv: LayerKV | None, metadata: AttentionMetadata, *,
               scale: float, window: int | None) -> Tensor:  # fmt: skip
        """Return attention (L, A, K) without gradients; q (L, A, K), new rows k, v (L, G, K), already written to kv."""

    def takes_decoder_blocks(self, hidden: Tensor, metadata: AttentionMetadata) -> bool:
        """Return whether this batch may be one call; a cheap check before the layers are inspected."""

    def decoder_blocks(
        self, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float
    ) -> DecoderBlocks | None:
        """Return the blocks fused for activations of `dtype`, or None if these weights are computed layer by layer."""
