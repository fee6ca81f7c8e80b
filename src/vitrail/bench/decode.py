"""`vitrail bench decode`: one new position for each of several sequences, over a cache of random keys and values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.bench.geometries import params_of
from vitrail.bench.machine import this_machine
from vitrail.bench.random_model import random_model
from vitrail.bench.report import READ, Measured, Report, Setting
from vitrail.bench.stream import StreamingRead
from vitrail.bench.timing import by_turns
from vitrail.generate.runner import Runner
from vitrail.kv.cache import KVCache
from vitrail.model.cost import decode_cost


class DecodeStep:
    """One decoding step: each call computes the next logits of every sequence and leaves the cache unchanged.

    Args:
        rows: number of sequences.
        context: cached positions of each.
    """

    def __init__(self, model: Any, rows: int, context: int) -> None:
        self.model = model
        self._cache = _random_cache(model, rows, context)
        self._runner = Runner(model, [], room=1, cache=self._cache)
        self._context = context
        self._ids = torch.arange(rows) % model.vocab_size
        self.cost = decode_cost(model, rows, context)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Return the most likely ids (rows,)."""
        logits = self._runner.decode(range(len(self._ids)), self._ids)
        for sequence in self._cache.sequences:
            self._cache.truncate(sequence, self._context)
        ids: Tensor = logits.argmax(-1)
        return ids


def bench_decode(setting: Setting, rows: Sequence[int]) -> Report:
    """Measure each number of sequences in `rows` against the streaming read."""
    setting.progress("making weights")
    model = random_model(params_of(setting.geometry, setting.layers), setting.format)
    setting.progress("warming up")
    context = setting.context or 0
    steps = [DecodeStep(model, count, context) for count in rows]
    read = StreamingRead(setting.geometry)
    turns = by_turns(steps, [read.bandwidth] * len(steps), setting.turns())
    measured = []
    for count, step, turn in zip(rows, steps, turns, strict=True):
        more = {} if count == rows[0] else {"times_the_first": turn.seconds / turns[0].seconds}
        what = f"{count} {'row' if count == 1 else 'rows'} after {context} positions"
        measured.append(Measured(what, count, step.cost, turn, READ, more))
    return Report("decode", setting, this_machine(), measured)


def _random_cache(model: Any, rows: int, context: int) -> KVCache:
    text = model.text_config
    shape = (rows, text.num_key_value_heads, context, text.head_dim)
    past = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    return KVCache.from_legacy([(past, past)] * text.num_hidden_layers, model.kv_geometry)
