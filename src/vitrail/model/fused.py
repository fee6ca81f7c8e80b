"""FusedBlocks: all decoder blocks in one call of a backend. Batches: ops/cpu/backend.py. Weights: ops/cpu/decoder.py.

Blocks must be as built: no hooks, replaced functions, adapters or recording. Others run module by module, to the
same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vitrail.kv.cache import KVCache
from vitrail.model.layers import GatedMLP, Linear, RMSNorm
from vitrail.ops.backend import AttentionBackend, BlockWeights, DecoderBlocks
from vitrail.ops.backends import backend_for
from vitrail.ops.batch import ForwardBatch
from vitrail.ops.weight import Weight
from vitrail.quant.replace import QuantLinear

_PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
# The forwards as written, to detect a class whose forward was replaced later.
_FORWARDS: dict[type[nn.Module], Any] = {
    module: module.forward for module in (GatedMLP, RMSNorm, Linear, QuantLinear)
}


class FusedBlocks:
    """The fused program of a decoder's blocks, rebuilt when a weight changes. Copies and pickles begin empty.

    Args:
        forwards: block and attention class → the `forward` that the kernels implement.
    """

    def __init__(self, forwards: Mapping[type[nn.Module], Any]) -> None:
        self._forwards = {**forwards, **_FORWARDS}
        self._classes = [*forwards, GatedMLP, RMSNorm, RMSNorm]
        # Key and program in one tuple, replaced whole, for threads that share a model.
        self._held: tuple[list[Any], DecoderBlocks | None] | None = None

    def __reduce__(self) -> tuple[type[FusedBlocks], tuple[Mapping[type[nn.Module], Any]]]:
        return FusedBlocks, ({module: self._forwards[module] for module in self._classes[:2]},)

    def run(
        self,
        layers: nn.ModuleList,
        hidden: Tensor,
        turn: tuple[Tensor, Tensor, Tensor | None],
        batch: ForwardBatch,
        cache: KVCache | None,
    ) -> Tensor | None:
        """Run hidden (L, D) through all blocks; return None, with nothing done, where they must run one by one."""
        if torch.compiler.is_compiling():  # first: torch.compile cannot trace what follows
            return None
        backend = backend_for(hidden.device)
        if cache is None or not backend.takes_decoder_blocks(hidden, batch.attention):
            return None
        program = self._current_program(layers, hidden, backend)
        if program is None or (program.plain and not program.pays(hidden, _a_plain_weight(layers))):
            return None
        attention: Any = layers[0].self_attn
        return program.run(
            hidden,
            turn,
            batch.attention,
            [cache.layer(layer.self_attn.index, hidden.device) for layer in layers],  # type: ignore[arg-type]
            heads=attention.q_proj.out_features // attention.head_dim,
            scale=attention.head_dim**-0.5,
            window=attention.window,
        )

    def _current_program(
        self, layers: nn.ModuleList, hidden: Tensor, backend: AttentionBackend
    ) -> DecoderBlocks | None:
        """Return the program of the present weights, rebuilt when one was replaced or moved."""
        first: Any = layers[0] if layers else None
        if [type(first), type(getattr(first, "self_attn", None))] != self._classes[:2]:
            return None
        eps = getattr(first.input_layernorm, "eps", None)
        seen = [hidden.dtype, eps, first.self_attn.head_dim, first.self_attn.window]
        for layer in layers:
            if not self._look(layer, hidden.dtype, seen):
                return None
        if not self._are_as_written():
            return None
        held = self._held
        if held is None or seen != held[0]:
            program = backend.decoder_blocks([_weights(layer) for layer in layers], hidden.dtype, seen[1])
            self._held = held = (seen, program)
        return held[1]

    def _look(self, layer: nn.Module, dtype: torch.dtype, seen: list[Any]) -> bool:
        """Append the key of a block (weights by address) to `seen`; return False where a block is not as built.

        Bypasses nn.Module's attribute look-ups, which for all layers take longer than a block's products.
        """
        if type(layer) is not self._classes[0]:
            return False
        parts: Any = layer._modules
        attend, mlp, *norms = (parts[name] for name in _PARTS)
        if [type(module) for module in (attend, mlp, *norms)] != self._classes[
            1:
        ] or mlp.act_fn is not F.silu:
            return False
        linears = [attend._modules[name] for name in _PROJECTIONS] + [mlp._modules[name] for name in _MLP]
        modules = (layer, attend, mlp, *norms, *linears)
        if not all(map(_is_unhooked, modules)) or seen[2:4] != [attend.head_dim, attend.window]:
            return False
        for norm in norms:
            weight = norm._parameters["weight"]
            if norm.eps != seen[1] or not _is_ordinary(weight):
                return False
            seen.append(_place(weight))
        for linear in linears:
            packed = type(linear) is QuantLinear
            if not packed and type(linear) is not Linear:
                return False
            weight = linear.packed if packed else linear._parameters["weight"]
            if linear._parameters["bias"] is not None or not (packed or _is_ordinary(weight)):
                return False
            # As layers.is_plain: a layer with another compute type casts its rows.
            if packed and dtype != torch.float32 and linear.compute_dtype not in (None, dtype):
                return False
            seen.append(_place(weight))
        return True

    def _are_as_written(self) -> bool:
        """Return whether calling a module of these classes runs the expected forward alone."""
        watched = _has_any_global_hook()  # type: ignore[no-untyped-call]
        return not watched and all(module.forward is forward for module, forward in self._forwards.items())


def _is_unhooked(module: nn.Module) -> bool:
    own = module.__dict__
    return not (
        own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or "forward" in own
    )


def _linears(layer: Any) -> tuple[Any, ...]:
    attend, mlp = layer.self_attn, layer.mlp
    return *(getattr(attend, name) for name in _PROJECTIONS), *(getattr(mlp, name) for name in _MLP)


def _weights(layer: Any) -> BlockWeights:
    q, k, v, out, gate, up, down = (linear.weight for linear in _linears(layer))
    norms = layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()
    return BlockWeights(*norms, (q, k, v), (out,), (gate, up), (down,))


def _a_plain_weight(layers: nn.ModuleList) -> Tensor:
    every = (linear.weight for layer in layers for linear in _linears(layer))
    return next(weight for weight in every if isinstance(weight, Tensor))


def _is_ordinary(weight: Tensor) -> bool:
    """Return whether a tensor's values are its own storage; subclasses may keep them elsewhere."""
    return type(weight) in (Tensor, nn.Parameter)


def _place(weight: Weight) -> tuple[Any, ...]:
    """Return a weight's address and layout: equal as long as the module holds the same memory."""
    if isinstance(weight, Tensor):
        return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype
    parts = [part for tensor in weight.tensors.values() for part in (tensor.data_ptr(), tensor.numel())]
    return weight.layout, weight.group, weight.shape, weight.dtype, *parts
