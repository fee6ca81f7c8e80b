"""Record: what output_hidden_states and output_attentions collect on the way. Scattering to (B, …) happens elsewhere."""

from dataclasses import dataclass, field

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

    def see(self, hidden: Tensor) -> None:
        """Keep one layer's rows, where they are wanted."""
        if self.hidden:
            self.hidden_states.append(hidden)
