"""CPUBackend: attention and whole decoder blocks through the kernels in native/."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vitrail.ops.backend import AttentionMetadata, BlockWeights, DecoderBlocks
from vitrail.ops.cpu import attention as cpu_attention, library
from vitrail.ops.cpu.decoder import DecoderProgram
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.kv import LayerKV
from vitrail.ops.reference import attention as reference_attention

# Larger batches are bound by arithmetic rather than call overhead, and a call cannot be interrupted.
MOST_ROWS = 16


class CPUBackend:
    """Attention by the operators of ops/cpu, which fall back to the definition; also for the meta device."""

    def plan(self, metadata: AttentionMetadata, kv: LayerKV | None, dtype: torch.dtype) -> AttentionMetadata:
        """Return the metadata unchanged for the kernels, or with the reference's plan where the reference runs."""
        if kv is None or kv.keys.device.type != "cpu" or torch.compiler.is_compiling():
            return metadata
        defined = library.library() is None or dtype not in FLOATS
        return reference_attention.plan(metadata, kv, dtype) if defined else metadata

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kv: LayerKV | None, metadata: AttentionMetadata, *,
               scale: float, window: int | None) -> Tensor:  # fmt: skip
        """Implement AttentionBackend.attend."""
        segments = metadata.segments
        offsets, lengths = segments.cu_seqlens_q, segments.seq_lens_k
        if kv is None or metadata.block_tables is None:
            return cpu_attention.attention(q, k, v, offsets, lengths, segments.causal, scale, window)
        if isinstance(metadata, reference_attention.DecodePlan):
            return reference_attention.attention_cached(q, metadata, scale=scale, kv=kv, window=window)
        table = metadata.block_tables.tensor
        return cpu_attention.attention_cached(
            q, kv.keys, kv.values, kv.scales, table, offsets, lengths, scale, window
        )

    def takes_decoder_blocks(self, hidden: Tensor, metadata: AttentionMetadata) -> bool:
        """Return True for a small cached CPU batch with autograd, autocast, dispatch and function modes all off."""
        return (
            type(hidden) is Tensor
            and metadata.block_tables is not None
            and metadata.segments.causal
            and hidden.device.type == "cpu"
            and 0 < len(hidden) <= MOST_ROWS
            and library.library() is not None
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not is_in_torch_dispatch_mode()
            and not torch._C._len_torch_function_stack()  # default devices are such modes
        )

    def decoder_blocks(
        self, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float
    ) -> DecoderBlocks | None:
        """Return a program for activations of `dtype`, or None if a kernel does not support some weight."""
        return DecoderProgram.new(blocks, dtype, eps)
