"""Record: what output_hidden_states and output_attentions collect on the way. Scattering to (B, …) happens elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Record:
    """Packed hidden states and attention weights of each layer.

    Attributes:
        hidden: collect hidden states; weights: collect attention weights.
        hidden_states: (L, D) before the first layer and after each.
        attentions: per layer, per segment (A, T, S).
    """

    hidden: bool = False
    weights: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[list[Tensor]] = field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether anything is collected."""
        return self.hidden or self.weights

    def see(self, hidden: Tensor) -> None:
        """Keep one layer's rows, where they are wanted."""
        if self.hidden:
            self.hidden_states.append(hidden)

    def join(self, groups: "Sequence[Record]") -> None:
        """Append what groups of rows have recorded on their ways through the same layers."""
        self.hidden_states += [
            torch.cat(rows) for rows in zip(*(g.hidden_states for g in groups), strict=True)
        ]
        for layer in zip(*(g.attentions for g in groups), strict=True):
            self.attentions.append([weights for segments in layer for weights in segments])
