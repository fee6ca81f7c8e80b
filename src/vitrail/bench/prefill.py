"""`vitrail bench prefill`: a whole prompt in one pass, compared with PyTorch's products of the same shapes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.bench.geometries import params_of
from vitrail.bench.machine import this_machine
from vitrail.bench.matmul import MatrixRate, decoder_shapes
from vitrail.bench.random_model import random_model
from vitrail.bench.report import MULTIPLY, Measured, Report, Setting
from vitrail.bench.timing import by_turns
from vitrail.generate.runner import Request, Runner
from vitrail.model.cost import prefill_cost


class Prefill:
    """Prefill of one prompt: each call reads `rows` positions into a new cache."""

    def __init__(self, model: Any, rows: int) -> None:
        self.cost = prefill_cost(model, rows)
        self._model = model
        self._ids = torch.arange(rows) % model.text_config.vocab_size

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Return logits (1, V) after the last position."""
        return Runner(self._model, [Request(self._ids)], room=1).prefill()


def bench_prefill(setting: Setting, rows: Sequence[int]) -> Report:
    """Measure prompts of each of these lengths."""
    setting.progress("making weights")
    model = random_model(params_of(setting.geometry, setting.layers), setting.format)
    setting.progress("warming up")
    works = [Prefill(model, count) for count in rows]
    limits = [MatrixRate(decoder_shapes(model, count)) for count in rows]
    turns = by_turns(works, [limit.rate for limit in limits], setting.turns())
    measured = [
        Measured(f"a prompt of {count} positions", count, work.cost, turn, MULTIPLY)
        for count, work, turn in zip(rows, works, turns, strict=True)
    ]
    more = {
        "matrix_products": f"of one layer's shapes, by PyTorch in {str(limits[0].dtype).removeprefix('torch.')}"
    }
    return Report("prefill", setting, this_machine(), measured, more)
