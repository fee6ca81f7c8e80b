"""ReferenceBackend: attention by its PyTorch definition, on any device, without fused decoder blocks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.ops.backend import AttentionMetadata, BlockWeights, DecoderBlocks
from vitrail.ops.kv import LayerKV
from vitrail.ops.reference import attention as reference_attention


class ReferenceBackend:
    """Attention by its definition; lengths are on the host, so that no batch waits for the device."""

    def plan(self, metadata: AttentionMetadata, kv: LayerKV | None, dtype: torch.dtype) -> AttentionMetadata:
        """Group the decoding sequences that share a call."""
        return reference_attention.plan(metadata, kv, dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kv: LayerKV | None, metadata: AttentionMetadata, *,
               scale: float, window: int | None) -> Tensor:  # fmt: skip
        """Implement AttentionBackend.attend."""
        if kv is None:
            return reference_attention.attention(q, k, v, metadata, scale=scale, window=window)
        return reference_attention.attention_cached(q, metadata, scale=scale, kv=kv, window=window)

    def takes_decoder_blocks(self, hidden: Tensor, metadata: AttentionMetadata) -> bool:
        """Return False: layers run one by one."""
        return False

    def decoder_blocks(
        self, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float
    ) -> DecoderBlocks | None:
        """Return None: layers run one by one."""
        return None
