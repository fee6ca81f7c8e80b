"""The interface of an attention backend, and what it is given: AttentionMetadata, BlockWeights. The table: backends.py."""

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
    """What attention needs of a batch, the same for all layers. A backend's plan() may return a subclass with more.

    Attributes:
        segments: which rows belong together and how many keys each sees.
        slot_mapping: int64 (L,), where the new rows go in the cache (block · positions of a block + offset).
        block_tables: each segment's blocks. Both are None without a cache.
    """

    segments: Segments
    slot_mapping: Tensor | None = None
    block_tables: BlockTables | None = None

    def to(self, device: torch.device) -> "AttentionMetadata":
        """The same on another device."""
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
    """The weights of one decoder block: norms (D,), matrices (out, in) without biases; a field's share their input."""

    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: tuple[Weight, Weight, Weight]
    out: tuple[Weight]
    gate_up: tuple[Weight, Weight]
    down: tuple[Weight]

    def products(self) -> tuple[tuple[Weight, ...], ...]:
        """The four products, in the order in which they are computed."""
        return self.qkv, self.out, self.gate_up, self.down

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of both norms, then (out, in) of every matrix."""
        matrices = (weight for weights in self.products() for weight in weights)
        return tuple(tuple(x.shape) for x in (self.attention_norm, self.mlp_norm, *matrices))


class DecoderBlocks(Protocol):
    """All blocks of one decoder as one call, to the bits of the layers one by one."""

    plain: bool
    """Whether there is a matrix that is not packed."""

    def pays(self, hidden: Tensor, weight: Tensor) -> bool:
        """Whether the call beats the layers for these rows, given a matrix that is not packed."""

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
        """hidden (L, D) through all blocks; new keys and values go into the cache. None: nothing was done."""


class AttentionBackend(Protocol):
    """How one kind of device computes attention, and decoder blocks whole where it can."""

    def plan(self, metadata: AttentionMetadata, kv: LayerKV | None, dtype: torch.dtype) -> AttentionMetadata:
        """What attend() takes, computed once per batch and device. kv: one layer's; dtype: of the queries."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kv: LayerKV | None, metadata: AttentionMetadata, *,
               scale: float, window: int | None) -> Tensor:  # fmt: skip
        """Softmax attention without gradients: q (L, A, K), new rows k, v (L, G, K), already written to kv: (L, A, K)."""

    def takes_decoder_blocks(self, hidden: Tensor, metadata: AttentionMetadata) -> bool:
        """Whether this batch may be one call: asked first, before the layers are looked at."""

    def decoder_blocks(
        self, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float
    ) -> DecoderBlocks | None:
        """The blocks for activations of `dtype`, or None where these weights go layer by layer."""
