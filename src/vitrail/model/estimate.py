"""Estimate: seconds of an answer, from the cost model's operations and timed products with the model's weights.

The figure is that of an idle machine: the quickest of several short probes counts, in processor time where that is less
than wall time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import nn

from vitrail.model.cost import decoder_flop, vision_cost
from vitrail.ops import threads

BUDGET = 0.25  # seconds of measuring, about
QUICK = 5e9  # multiplications that any machine does in a few seconds: below it nothing is measured
NOTICEABLE = 5.0  # seconds from which a notice is shown
TYPICAL = 64  # ids of an answer, for NOTICEABLE
_ROWS = (16, 512)  # fewest and most rows of a measured product
_PROBES, _MOST_PROBES = 4, 256  # of one rate


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds to the first id of an answer, and per id after it."""

    first_token: float
    per_token: float

    @property
    def noticeable(self) -> bool:
        """Whether the answer takes more than a few seconds."""
        return self.first_token + TYPICAL * self.per_token > NOTICEABLE

    def as_json(self) -> dict[str, float]:
        """Return the record for `--json`."""
        return {"first_token": round(self.first_token, 2), "per_token": round(self.per_token, 4)}

    def in_words(self) -> str:
        """Return such as "the answer begins in about 40 s, then about 0.5 s a token"."""
        return f"the answer begins in about {_about(self.first_token)}, then about {_about(self.per_token)} a token"


@dataclass(frozen=True, slots=True)
class Work:
    """Multiplications: of prefill with its images, and of one decode step."""

    prompt: int
    token: int


def estimate(model: Any, prompt: int, sizes: Sequence[Sequence[int]] = ()) -> Estimate | None:
    """Estimate the seconds of an answer by timing a few of the decoder's layers for about BUDGET seconds.

    Args:
        model: a model with a head.
        prompt: number of ids of the prompt.
        sizes: (height, width) of each image in pixels.

    Returns:
        The estimate, or None below QUICK multiplications.
    """
    work = work_of(model, prompt, sizes)
    if work.prompt + TYPICAL * work.token < QUICK:
        return None
    many, one = measure(model, prompt)
    return Estimate(work.prompt * many, work.token * one)


def work_of(model: Any, prompt: int, sizes: Sequence[Sequence[int]] = ()) -> Work:
    """Return the multiplications of all parts, with attention's, which grow with the square of its length."""
    seen = 0
    if sizes:
        side = model.config.vision_config.patch_size
        seen = vision_cost(model, [(height // side, width // side) for height, width in sizes]).flop
    read = decoder_flop(model, prompt, prompt * prompt / 2)  # on average half of the prompt is attended to
    return Work((seen + read) // 2, decoder_flop(model, 1, prompt) // 2)


def _matrices(module: nn.Module) -> Iterable[Any]:
    """Yield the linear layers, plain and quantised."""
    return (m for m in module.modules() if hasattr(m, "in_features") and hasattr(m, "out_features"))


def _size(layer: Any) -> int:
    return int(layer.in_features * layer.out_features)


@torch.inference_mode()
def measure(model: Any, prompt: int) -> tuple[float, float]:
    """Return seconds per multiplication: for the rows of a prompt together, and for one row."""
    blocks = [list(_matrices(block)) for block in model.decoder.layers]
    smallest = min(blocks[0], key=_size)
    _seconds(smallest, 1, model.dtype)  # warm-up: the first product starts threads
    fewest = min(_ROWS[0], prompt)
    quickest = min(_seconds(smallest, fewest, model.dtype) for _ in range(_PROBES))
    rate = max(quickest, 1e-9) / (_size(smallest) * fewest)
    largest = [max(block, key=_size) for block in blocks]
    fit = BUDGET / 2 / _PROBES / (rate * _size(largest[0]))  # rows that fit into the budget of `_rate`
    rows = int(min(max(fewest, fit), prompt, _ROWS[1]))
    return (_rate(largest, rows, BUDGET / 2, model.dtype), _rate(largest, 1, BUDGET / 4, model.dtype))


def _rate(layers: Sequence[Any], rows: int, budget: float, dtype: torch.dtype) -> float:
    """Return seconds per multiplication of the quickest product; weights come from memory, as in a real step."""
    best, least, began = math.inf, min(len(layers), 2), time.perf_counter()
    for number, layer in enumerate(cycle(layers)):
        if (time.perf_counter() - began > budget and number >= least) or number >= _MOST_PROBES:
            break
        best = min(best, _seconds(layer, rows, dtype) / (rows * _size(layer)))
    return best


def _seconds(layer: Any, rows: int, dtype: torch.dtype) -> float:
    x = torch.zeros(rows, layer.in_features, dtype=dtype, device=layer.weight.device)
    _wait(x.device)
    began, busy = time.perf_counter(), time.process_time()
    with threads.fitting(rows, _size(layer)):
        layer(x)
    _wait(x.device)
    took, worked = time.perf_counter() - began, time.process_time() - busy
    # Beside busy processes, processor time is nearer to the product's own time.
    return worked if x.device.type == "cpu" and 0 < worked < took else took


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _about(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.0f} min"
    return (
        f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s" if seconds >= 0.95 else f"{seconds:.2g} s"
    )
