"""Learning-rate schedule: one factor per step, applied to each parameter group's rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["constant", "cosine"]


@dataclass(frozen=True, slots=True)
class LrSchedule:
    """Factors of the optimizers' learning rates.

    The factor rises linearly over `warmup` steps. "constant" then stays at 1 and falls linearly to `final` over the last
    fraction `decay` of the steps; "cosine" falls to `final` along half a cosine; "linear" falls linearly from 1 at the first
    step to `final` at the last, with the warmup as a second factor.
    """

    steps: int
    warmup: int = 0
    kind: Kind | Literal["linear"] = "constant"
    decay: float = 0.2
    final: float = 0.0

    def factor(self, step: int) -> float:
        """Return the factor at a step, counted from 0."""
        if self.kind == "linear":
            rise = min(1.0, (step + 1) / max(1, self.warmup))
            return rise * (1 + (self.final - 1) * step / max(1, self.steps))
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "cosine":
            done = (step - self.warmup) / max(1, self.steps - self.warmup)
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        begin = max(self.warmup, self.steps - round(self.decay * self.steps))
        done = max(0.0, (step - begin) / max(1, self.steps - begin))
        return 1 + (self.final - 1) * min(1.0, done)
