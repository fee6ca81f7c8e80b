"""Layers of tower and decoder: linear, embedding, norm, gated MLP.

Letters: L packed rows · D width · F MLP width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vitrail.errors import ConfigError
from vitrail.ops.linear import embedding, linear, linear_group
from vitrail.ops.rows import rms_norm, silu_gate
from vitrail.quant.replace import QuantLinear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return the function of a configuration's hidden_act; "gelu" is the exact (erf) form."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is not supported; one of {', '.join(ACTIVATIONS)} was expected."
        )
    return ACTIVATIONS[name]


class Linear(nn.Linear):
    """nn.Linear over ops/linear.py; initialised by its model."""

    def reset_parameters(self) -> None:
        """Leave the values to PreTrainedModel.post_init(), so that they are drawn once."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding over ops/linear.py; initialised by its model."""

    def reset_parameters(self) -> None:
        """Leave the values to PreTrainedModel.post_init()."""

    def forward(self, input: Tensor) -> Tensor:
        return embedding(input, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) in float32, rounded to x's dtype, times a weight (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class GatedMLP(nn.Module):
    """down(act(gate(x)) · up(x)): SwiGLU with the usual activation (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, act: str) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden, bias=False)
        self.up_proj = Linear(width, hidden, bias=False)
        self.down_proj = Linear(hidden, width, bias=False)
        self.act_fn = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)
        hidden = silu_gate(gate, up) if self.act_fn is F.silu else self.act_fn(gate) * up
        down: Tensor = self.down_proj(hidden)
        return down


def project(x: Tensor, *modules: nn.Module) -> list[Tensor]:
    """Apply several projections to the same rows (L, D): grouped when all are plain, else module by module.

    A module with a hook, an adapter or another type is called, so that nothing attached to it is skipped.
    """
    if all(is_plain(module, x.dtype) for module in modules):
        return linear_group(x, [module.weight for module in modules])  # type: ignore[misc]
    return [module(x) for module in modules]


def is_plain(module: nn.Module | None, dtype: torch.dtype) -> bool:
    """Return whether calling a module on rows of `dtype` is the product with its weight alone."""
    if type(module) is QuantLinear:
        # A layer with another compute type than the rows' casts them itself, except float32.
        computed = dtype == torch.float32 or module.compute_dtype in (None, dtype)
        return computed and module.bias is None and is_untouched(module)
    return type(module) is Linear and module.bias is None and is_untouched(module)


def is_untouched(module: nn.Module) -> bool:
    """Return whether calling a module runs its class's forward: no hooks, own or global, and no replaced forward."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    watched = _has_any_global_hook()  # type: ignore[no-untyped-call]
    return not hooked and not watched and "forward" not in module.__dict__
