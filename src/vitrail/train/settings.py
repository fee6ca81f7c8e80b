"""Settings: all options of a training run, with their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from vitrail.arguments import checked, short
from vitrail.errors import InputError
from vitrail.train.lr_schedule import Kind

Method = Literal["lora", "full"]
Chosen = Literal["adamw", "muon"]
Precision = Literal["float32", "bf16"]


@checked
@dataclass(frozen=True)
class Settings:
    """Options of a training run.

    Attributes:
        epochs, steps: length; steps overrides epochs.
        batch, positions: maximum conversations and positions of a pack (one conversation always fits).
        accumulate: packs per step; the loss is the mean over all target ids of the step, however they are packed.
        lr: None: 2e-4 with adapters, 2e-5 for all weights.
        warmup: steps of linear warmup; None: a twentieth of all, at most 100.
        schedule: "constant" (falls over the last fraction `decay`) or "cosine", down to `final` times lr.
        optimizer: "adamw", or "muon" for hidden matrices and AdamW for the rest.
        clip: maximum norm of the gradient; 0: none.
        ema: decay of a moving average of the weights, which is evaluated and saved; 0: none.
        precision: "bf16": products in bfloat16, trained weights in float32.
        checkpointing: recompute blocks in the backward pass: less memory, more time.
        eval_every: steps between evaluations (None: once per epoch).
        patience: evaluations without improvement after which the run ends; the best weights are then kept.
        save_every: steps between checkpoints.
        keep: number of checkpoints kept.
        seed: of the order of the data, adapter initialisation and dropout.

    Raises:
        InputError: invalid values.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch: int = 8
    positions: int = 8192
    accumulate: int = 1
    lr: float | None = None
    warmup: int | None = None
    schedule: Kind = "constant"
    decay: float = 0.2
    final: float = 0.0
    optimizer: Chosen = "adamw"
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    precision: Precision = "float32"
    checkpointing: bool = False
    eval_every: int | None = None
    patience: int | None = None
    save_every: int = 100
    keep: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        whole = {"batch": 1, "positions": 1, "accumulate": 1, "save_every": 1, "keep": 1, "seed": 0}
        for name, least in whole.items():
            self._check(name, int, getattr(self, name) >= least, f"a whole number of at least {least}")
        if self.warmup is not None:
            self._check("warmup", int, self.warmup >= 0, "a whole number of at least 0")
        for name in ("steps", "eval_every", "patience"):
            if getattr(self, name) is not None:
                self._check(name, int, getattr(self, name) >= 1, "a whole number of at least 1")
        for name in ("epochs", "lr"):
            if getattr(self, name) is not None:
                self._check(name, (int, float), 0 < getattr(self, name) < 1e6, "a number above 0")
        for name in ("decay", "final"):
            self._check(name, (int, float), 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._check("ema", (int, float), 0 <= self.ema < 1, "a number of at least 0 and below 1")
        for name in ("clip", "weight_decay"):
            self._check(name, (int, float), getattr(self, name) >= 0, "a number of at least 0")
        for name, kind in (("schedule", Kind), ("optimizer", Chosen), ("precision", Precision)):
            self._check(
                name, str, getattr(self, name) in get_args(kind), f"one of {', '.join(get_args(kind))}"
            )

    def _check(self, name: str, kind: Any, good: bool, wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not good:
            raise InputError(f"{name} must be {wanted}, got {short(value)}.")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings for a file."""
        return asdict(self)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of a resumed run as text, such as "lr 0.1, was 0.2". Its length may change."""
    names = list(dict.fromkeys([*before, *now]))
    free = {"save_every", "keep", "steps", "epochs"}
    return [
        f"{name} {now.get(name)!r}, was {before.get(name)!r}"
        for name in names
        if name not in free and before.get(name) != now.get(name)
    ]


SETTINGS = tuple(entry.name for entry in fields(Settings))
"""Names of all settings."""


TrainingSettings = Settings  # name in `vitrail`
