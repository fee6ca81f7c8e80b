"""ReferenceBackend: attention by its definition in PyTorch, on any device. It fuses no decoder blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.ops.backend import AttentionMetadata, BlockWeights, DecoderBlocks
from vitrail.ops.kv import LayerKV
from vitrail.ops.reference import attention as reference_attention


class ReferenceBackend:
    """Attention by its definition; lengths are on the host, so that no batch waits for the device."""

    def plan(self, metadata: AttentionMetadata, kv: LayerKV | None, dtype: torch.dtype) -> AttentionMetadata:
        """Which decoding sequences are computed together."""
        return reference_attention.plan(metadata, kv, dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kv: LayerKV | None, metadata: AttentionMetadata, *,
               scale: float, window: int | None) -> Tensor:  # fmt: skip
        """As AttentionBackend."""
        if kv is None:
            return reference_attention.attention(q, k, v, metadata, scale=scale, window=window)
        return reference_attention.attention_cached(q, metadata, scale=scale, kv=kv, window=window)

    def takes_decoder_blocks(self, hidden: Tensor, metadata: AttentionMetadata) -> bool:
        """Never: layers go one by one."""
        return False

    def decoder_blocks(
        self, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float
    ) -> DecoderBlocks | None:
        """Never: layers go one by one."""
        return None
