"""Record: hidden states and attention weights for output_hidden_states and output_attentions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.ops.attention import AttentionPlan, with_gradient_of


class Layout(Protocol):
    """Conversion of packed rows to the caller's layout, such as (B, T, …), and back."""

    def scatter(self, rows: Tensor) -> Tensor:
        """Scatter rows (L, D) → the caller's layout."""

    def gather(self, laid_out: Tensor) -> Tensor:
        """Gather the caller's layout → rows (L, D)."""

    def scatter_weights(self, per_segment: Sequence[Tensor]) -> Tensor:
        """Scatter attention weights, per segment (A, T, S) → the caller's layout."""

    def gather_weights(self, laid_out: Tensor) -> list[Tensor]:
        """Gather attention weights of the caller's layout → per segment (A, T, S)."""


@dataclass
class Record:
    """Hidden states and attention weights of each layer.

    With a layout and gradients, the layers continue from the recorded tensors, so that gradients flow through them
    (`retain_grad`) as in transformers; the values are the same.

    Attributes:
        hidden: collect hidden states; weights: collect attention weights.
        layout: None keeps packed rows.
        hidden_states: (L, D), or as laid out, before the first layer and after each.
        attentions: per layer, per segment (A, T, S), or as laid out.
    """

    hidden: bool = False
    weights: bool = False
    layout: Layout | None = None
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Any] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anything is collected."""
        return self.hidden or self.weights

    @property
    def in_graph(self) -> bool:
        """Whether the layers continue from the recorded tensors."""
        return self.wanted and self.layout is not None and torch.is_grad_enabled()

    def see(self, hidden: Tensor) -> Tensor:
        """Record one layer's rows if wanted; return the rows to continue with."""
        if not self.hidden:
            return hidden
        if self.layout is None:
            self.hidden_states.append(hidden)
            return hidden
        laid_out = self.layout.scatter(hidden)
        self.hidden_states.append(laid_out)
        return self.layout.gather(laid_out) if self.in_graph and laid_out.requires_grad else hidden

    def attend(
        self,
        plan: AttentionPlan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float,
        layer: int,
        window: int | None,
    ) -> Tensor:
        """Return the attention of one layer (L, A, K) and record its weights if wanted; see AttentionPlan.attend."""
        mixed = plan.attend(q, k, v, scale=scale, layer=layer, window=window)
        if not self.weights:
            return mixed
        weights = plan.weights(q, k, scale=scale, layer=layer, window=window)
        if self.layout is None:
            self.attentions.append(weights)
            return mixed
        laid_out = self.layout.scatter_weights(weights)
        self.attentions.append(laid_out)
        if not (self.in_graph and mixed.requires_grad):
            return mixed
        return with_gradient_of(mixed, plan.mix(self.layout.gather_weights(laid_out), v, layer=layer))

    def join(self, groups: "Sequence[Record]") -> None:
        """Append the packed records of groups of rows that went through the same layers."""
        for rows in zip(*(g.hidden_states for g in groups), strict=True):
            self.see(torch.cat(rows))
        for layer in zip(*(g.attentions for g in groups), strict=True):
            joined = [weights for segments in layer for weights in segments]
            self.attentions.append(joined if self.layout is None else self.layout.scatter_weights(joined))
