"""Decoder blocks as one call of the kernels: which steps and which blocks can be. The call is ops/native_decoder.py's.

A step of few rows that needs no gradient, on a CPU, through blocks that are what they were built as: nothing hooked,
replaced, adapted or recorded. Everything else goes module by module, to the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vitrail.generate.cache import KVCache
from vitrail.model.layers import GatedMLP, RMSNorm, is_plain, is_untouched
from vitrail.ops import native, native_dense
from vitrail.ops.native_decoder import BlockWeights, DecoderProgram
from vitrail.ops.step import Step

# More rows are bound by arithmetic, not by calls, and a call cannot be interrupted.
MOST_ROWS = 16


class FusedBlocks:
    """What a decoder remembers of its blocks so that they can be one call. Copies of a decoder begin with nothing.

    Args:
        block, attention: the classes whose arithmetic the kernels do.
    """

    def __init__(self, block: type[nn.Module], attention: type[nn.Module]) -> None:
        self._classes = (block, attention)
        # What was seen and its program: one tuple, replaced whole, for threads that share a model.
        self._held: tuple[list[Any], DecoderProgram | None] | None = None

    def __reduce__(self) -> tuple[type[FusedBlocks], tuple[type[nn.Module], type[nn.Module]]]:
        return FusedBlocks, self._classes

    def run(
        self,
        layers: nn.ModuleList,
        hidden: Tensor,
        turn: tuple[Tensor, Tensor, Tensor | None],
        step: Step,
        cache: KVCache | None,
    ) -> Tensor | None:
        """hidden (L, D) through all blocks, or None where they must be called one by one; then nothing was done."""
        if torch.compiler.is_compiling():  # first: compilers take nothing of what follows
            return None
        if cache is None or not step.segments.causal or not _is_a_short_step(hidden):
            return None
        program = self._current_program(layers, hidden)
        if program is None:
            return None
        if program.plain is not None and not native_dense.kernel_is_faster(hidden, [program.plain]):
            return None
        attention: Any = layers[0].self_attn
        return program.run(
            hidden,
            turn,
            step.segments,
            [cache.layer(index, step) for index in range(len(layers))],
            heads=attention.q_proj.out_features // attention.head_dim,
            scale=attention.head_dim**-0.5,
            window=attention.window,
        )

    def _current_program(self, layers: nn.ModuleList, hidden: Tensor) -> DecoderProgram | None:
        """The program of these very weights, made anew when one of them was replaced or moved."""
        first: Any = layers[0]
        seen = [hidden.dtype, first.input_layernorm.eps, first.self_attn.head_dim, first.self_attn.window]
        for layer in layers:
            if not self._look(layer, hidden.dtype, seen):
                return None
        held = self._held
        if held is None or not _are_same(seen, held[0]):
            program = DecoderProgram.new([_weights(layer) for layer in layers], hidden.dtype, seen[1])
            self._held = held = (seen, program)
        return held[1]

    def _look(self, layer: Any, dtype: torch.dtype, seen: list[Any]) -> bool:
        """Append what a program is made of; False where a block is not what it was built as."""
        block, attention = self._classes
        attend, mlp = layer.self_attn, layer.mlp
        if type(layer) is not block or type(attend) is not attention or type(mlp) is not GatedMLP:
            return False
        if (
            not (is_untouched(layer) and is_untouched(attend) and is_untouched(mlp))
            or mlp.act_fn is not F.silu
        ):
            return False
        if seen[2:4] != [attend.head_dim, attend.window]:
            return False
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            if type(norm) is not RMSNorm or not is_untouched(norm) or norm.eps != seen[1]:
                return False
            seen += (norm.weight, norm.weight.data_ptr())
        for linear in _linears(layer):
            if not is_plain(linear, dtype):
                return False
            weight = linear.weight
            seen += (weight, weight.data_ptr() if isinstance(weight, Tensor) else 0)
        return True


def _is_a_short_step(hidden: Tensor) -> bool:
    """Few rows on a CPU that nobody differentiates, traces or watches."""
    return (
        type(hidden) is Tensor
        and hidden.device.type == "cpu"
        and 0 < len(hidden) <= MOST_ROWS
        and native.library() is not None
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
    )


def _linears(layer: Any) -> tuple[Any, ...]:
    attend, mlp = layer.self_attn, layer.mlp
    return (
        attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj,
        mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    )  # fmt: skip


def _weights(layer: Any) -> BlockWeights:
    q, k, v, out, gate, up, down = (linear.weight for linear in _linears(layer))
    norms = layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()
    return BlockWeights(*norms, (q, k, v), (out,), (gate, up), (down,))


def _are_same(now: list[Any], before: list[Any]) -> bool:
    """The same objects, or the same numbers."""
    return len(now) == len(before) and all(
        a is b or (type(a) in (int, float) and a == b) for a, b in zip(now, before, strict=True)
    )
