"""How the learning rate moves through a run. Knows no optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "cosine"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A factor per step, to be multiplied with an optimiser's own rate.

    It rises in a straight line over `warmup` steps. "constant" then stays at 1 and falls in a straight line to `final`
    over the last share `decay` of the steps; "cosine" falls to `final` along half a wave.
    """

    steps: int
    warmup: int = 0
    kind: Kind = "constant"
    decay: float = 0.2
    final: float = 0.0

    def factor(self, step: int) -> float:
        """The factor at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "cosine":
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        begin = max(self.warmup, self.steps - round(self.decay * self.steps))
        done = max(0.0, (step - begin) / max(1, self.steps - begin))
        return 1 + (self.final - 1) * min(1.0, done)
