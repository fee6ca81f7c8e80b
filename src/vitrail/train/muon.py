"""Muon: momentum with orthogonalised matrix updates (Jordan 2024; scaling after Liu et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""Quintic steps of the Polar Express (Amsel et al. 2025, table of its optimal sequence), first four."""


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrix of a (…, rows, columns) tensor: singular values within 0.4 … 1.6."""
    x = matrix
    wide = x.shape[-2] <= x.shape[-1]
    if not wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in _COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = x if wide else x.mT
    return result


class Muon(Optimizer):
    """Muon for 2-D hidden matrices. Use AdamW for embeddings, norms, convolutions and heads.

    The update's root mean square is about 0.2 for any shape, so that learning rates are comparable with AdamW's.

    Args:
        params: matrices (rows, columns).
        lr: learning rate.
        momentum: decay of the averaged gradient (Nesterov).
        weight_decay: decoupled, times lr.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 2e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim != 2:
                    raise ValueError(f"Muon updates matrices; got a parameter of shape {tuple(param.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one update. Matrices of equal shape are orthogonalised together."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            same: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    same.setdefault(tuple(param.shape), []).append(param)
            for shape, params in same.items():
                updates = torch.stack([self._average(param, group["momentum"]) for param in params])
                scale = 0.2 * max(shape) ** 0.5
                for param, update in zip(params, orthogonalize(updates), strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"])
                    param.add_(update, alpha=-group["lr"] * scale)
        return result

    def _average(self, param: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        grad: Tensor = param.grad  # type: ignore[assignment]  # only parameters with a gradient come here
        average: Tensor = state["momentum"]
        average.lerp_(grad, 1 - momentum)
        return grad.lerp(average, momentum)
