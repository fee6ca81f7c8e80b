"""Fused decoder blocks: one call of the kernels in native/decoder.h. model/fused.py chooses the blocks.

This is not an operator: the definition is the blocks called one by one, bit for bit. Where something is unsupported the
result is None, and the caller runs block by block.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from vitrail.ops.backend import AttentionMetadata, BlockWeights
from vitrail.ops.checks import check_packed
from vitrail.ops.cpu import dense as cpu_dense, library, quant as cpu_quant
from vitrail.ops.cpu.attention import AttentionCall, int32
from vitrail.ops.cpu.kv import CacheWrite, check, is_cache, pointer, supported
from vitrail.ops.dtypes import FLOATS
from vitrail.ops.kv import LayerKV
from vitrail.ops.weight import PackedWeight, Weight


def _shapes(width: int, inner: int, heads: int, groups: int, head_width: int) -> tuple[tuple[int, ...], ...]:
    """Return BlockWeights.shapes() of a block of width D with this attention."""
    whole, shared = heads * head_width, groups * head_width
    matrices = (
        (whole, width), (shared, width), (shared, width), (width, whole), (inner, width), (inner, width), (width, inner)
    )  # fmt: skip
    return (width,), (width,), *matrices


class _Product(ctypes.Structure):
    """Product of native/decoder.h."""

    _fields_ = (
        ("matrices", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "columns", "group", "kind")),
    )


_MOST_TOGETHER = 3  # kMostTogether
_Products = _Product * _MOST_TOGETHER  # Products of native/decoder.h


class _Block(ctypes.Structure):
    """DecoderBlock of native/decoder.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "mlp_norm")),
        *((name, _Products) for name in ("qkv", "out", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "scales")),
    )


class _Run(ctypes.Structure):
    """DecoderRun of native/decoder.h."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("hidden", "cos", "sin", "temperature", "room")),
        ("attend", AttentionCall),
        ("write", CacheWrite),
        *((name, ctypes.c_int64) for name in ("rows", "width", "inner")),
        ("type", ctypes.c_int32),
        ("eps", ctypes.c_float),
    )


@lru_cache(maxsize=1)
def _kernels() -> tuple[Any, Any]:
    run, scratch = (library.function(name, ctypes.c_void_p) for name in ("vt_decoder_run", "vt_decoder_room"))
    run.restype, scratch.restype = ctypes.c_int32, ctypes.c_int64
    return run, scratch


class DecoderProgram:
    """Addresses of the weights of one decoder's blocks; it does not keep the weights alive.

    The caller of run() must check that the weights have not moved since the program was built.

    Attributes:
        dtype: of the activations.
        plain: whether some matrix is not packed.
    """

    def __init__(self, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float) -> None:
        self.dtype = dtype
        self._eps = eps
        self._shapes = blocks[0].shapes()
        every = (weight for block in blocks for weights in block.products() for weight in weights)
        self.plain = any(isinstance(weight, Tensor) for weight in every)
        self._kept: list[Any] = []
        self._table = (_Block * len(blocks))()
        for entry, block in zip(self._table, blocks, strict=True):
            entry.attention_norm, entry.mlp_norm = block.attention_norm.data_ptr(), block.mlp_norm.data_ptr()
            for name, weights in zip(("qkv", "out", "gate_up", "down"), block.products(), strict=True):
                for at, run in enumerate(_runs(weights, dtype)):
                    getattr(entry, name)[at] = self._product(run)

    @classmethod
    def new(cls, blocks: Sequence[BlockWeights], dtype: torch.dtype, eps: float) -> DecoderProgram | None:
        """Build a program for activations of `dtype`; None if a kernel does not support some weight.

        Raises:
            CheckpointError: a packed weight's parts do not fit its shape.
        """
        if library.library() is None or not blocks or not all(_fits(block, dtype) for block in blocks):
            return None
        if len({block.shapes() for block in blocks}) > 1:
            return None
        return cls(blocks, dtype, eps)

    def _product(self, weights: Sequence[Weight]) -> _Product:
        first = weights[0]
        table: Any
        if isinstance(first, PackedWeight) and first.layout in cpu_quant.BITS:
            packed = [weight for weight in weights if isinstance(weight, PackedWeight)]
            for weight in packed:
                check_packed(weight)
            words = [word for weight in packed for word in cpu_quant.quant_words(weight)]
            table = (ctypes.c_int64 * len(words))(*words)
            group, kind = first.group, cpu_quant.BITS[first.layout]
        else:
            table = (cpu_dense.Matrix * len(weights))(*_matrices(weights, self.dtype))
            group, kind = 1, 0
        self._kept.append(table)
        return _Product(ctypes.addressof(table), len(weights), first.shape[1], group, kind)

    def pays(self, hidden: Tensor, weight: Tensor) -> bool:
        """Implement DecoderBlocks.pays."""
        return cpu_dense.kernel_is_faster(hidden, [weight])

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
        """Compute hidden (L, D) through all blocks, caching new keys and values; None if unsupported: nothing was done.

        Args:
            hidden: (L, D).
            rope: cos and sin (L, K), and the query scale (L,) or None.
            metadata: of the batch.
            layers: cache of each block.
            heads, scale, window: of attention.

            rns:
            (L, D), or None.

        Raises:
            InputError, MemoryError: as attention does.
        """
        kv, segments, rows = layers[0], metadata.segments, len(hidden)
        if metadata.slot_mapping is None or metadata.block_tables is None:
            return None
        block_table, slot_mapping = metadata.block_tables.tensor, metadata.slot_mapping
        offsets, lengths = segments.cu_seqlens_q, segments.seq_lens_k
        if library.library() is None or hidden.dtype != self.dtype or not supported(hidden, kv.keys):
            return None
        if len(layers) != len(self._table) or not all(_is_like(layer, kv) for layer in layers):
            return None
        blocks, block, groups, width = kv.keys.shape
        inner = self._shapes[-1][1]
        if self._shapes != _shapes(hidden.shape[-1], inner, heads, groups, width) or hidden.dim() != 2:
            return None
        if any(part.shape != (rows, width) or part.dtype != self.dtype for part in rope[:2]):
            return None
        counts = slot_mapping.shape, block_table.shape[:1], offsets.shape, lengths.shape
        if counts != ((rows,), (len(segments),), (len(segments) + 1,), (len(segments),)):
            return None
        if rope[2] is not None and rope[2].shape != (rows,):
            return None
        # A copy: another thread may run with another cache.
        table = (_Block * len(self._table)).from_buffer_copy(self._table)
        for entry, layer in zip(table, layers, strict=True):
            entry.keys, entry.values = layer.keys.data_ptr(), layer.values.data_ptr()
            entry.scales = pointer(layer.scales)
        result = hidden.clone(memory_format=torch.contiguous_format)
        cos, sin = rope[0].contiguous(), rope[1].contiguous()
        temperature = None if rope[2] is None else rope[2].to(self.dtype).contiguous()
        tensors = [int32(x) for x in (block_table, offsets, lengths)]
        slots = slot_mapping.to(torch.int64).contiguous()
        stored, given = library.DTYPES[kv.keys.dtype], library.DTYPES[self.dtype]
        attend = AttentionCall(
            block_table=tensors[0].data_ptr(), q_offsets=tensors[1].data_ptr(), kv_lengths=tensors[2].data_ptr(),
            rows=len(result), segments=len(segments), heads=heads, groups=groups, width=width, slots=blocks * block,
            block=block, table_width=tensors[0].shape[1], q_stride=heads * width, key_stride=groups * width,
            value_stride=groups * width, window=window or 0, causal=True, type=given, key_type=stored, scale=scale,
        )  # fmt: skip
        write = CacheWrite(
            at=slots.data_ptr(), rows=len(result), groups=groups, width=width, slots=blocks * block,
            k_stride=groups * width, v_stride=groups * width, type=given, key_type=stored,
        )  # fmt: skip
        run = _Run(
            blocks=ctypes.addressof(table), count=len(table), hidden=result.data_ptr(), cos=cos.data_ptr(),
            sin=sin.data_ptr(), temperature=pointer(temperature), attend=attend, write=write, rows=len(result),
            width=result.shape[1], inner=inner, type=given, eps=self._eps,
        )  # fmt: skip
        kernel, scratch_bytes = _kernels()
        scratch = torch.empty(scratch_bytes(ctypes.byref(run)), dtype=torch.uint8, device="cpu")
        run.room = scratch.data_ptr()
        check(kernel(ctypes.byref(run)))
        return result


def _is_like(layer: LayerKV, first: LayerKV) -> bool:
    """Return whether a layer's cache is contiguous on the CPU, with the shape and dtypes of the first layer's."""
    keys, values, scales = layer.keys, layer.values, layer.scales
    whole = keys.is_cpu and values.is_cpu and keys.is_contiguous() and values.is_contiguous()
    if scales is not None:
        whole = whole and scales.is_cpu and scales.is_contiguous()
    alike = keys.shape == first.keys.shape and keys.dtype == first.keys.dtype
    return whole and alike and is_cache(keys, values, scales)


def _matrices(weights: Sequence[Weight], dtype: torch.dtype) -> list[cpu_dense.Matrix]:
    found = [cpu_dense.matrix_of(weight, dtype) for weight in weights]
    return [matrix for matrix in found if matrix is not None]


def _fits(block: BlockWeights, dtype: torch.dtype) -> bool:
    norms = (block.attention_norm, block.mlp_norm)
    if dtype not in FLOATS or any(
        norm.dtype != dtype or norm.device.type != "cpu" or not norm.is_contiguous() for norm in norms
    ):
        return False
    return all(_call(weight, dtype) is not None for weights in block.products() for weight in weights)


def _runs(weights: Sequence[Weight], dtype: torch.dtype) -> list[list[Weight]]:
    """Group weights with the same input into kernel calls: adjacent compatible ones share a call."""
    return [list(run) for _, run in groupby(weights, lambda weight: _call(weight, dtype))]


def _call(weight: Weight, dtype: torch.dtype) -> tuple[Any, ...] | None:
    """Return what the weights of one Product must have in common; None for one that is PyTorch's, or not on the CPU."""
    if weight.device.type != "cpu":
        return None
    if isinstance(weight, PackedWeight) and weight.layout in cpu_quant.BITS:
        return (weight.layout, weight.group) if cpu_quant.takes(weight) else None
    if isinstance(weight, Tensor) and dtype == torch.float32:
        return None  # PyTorch's product is faster
    matrix = cpu_dense.matrix_of(weight, dtype)
    return None if matrix is None else (matrix.format, matrix.type)
