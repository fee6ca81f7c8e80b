"""`vitrail bench e2e`: time to first token, and to a few more, for an image with a short question, stage by stage."""

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.bench.geometries import params_of
from vitrail.bench.machine import this_machine
from vitrail.bench.matmul import MatrixRate, decoder_shapes, tower_shapes
from vitrail.bench.random_model import random_model
from vitrail.bench.report import MULTIPLY, READ, Measured, Report, Setting
from vitrail.bench.stream import StreamingRead
from vitrail.bench.timing import Turn
from vitrail.generate.features import ImageFeatures
from vitrail.generate.runner import Request, Runner
from vitrail.images.grid import Grid, image_grid
from vitrail.images.processor import PixtralImageProcessor
from vitrail.model.cost import Cost, decode_cost, prefill_cost, vision_cost

QUESTION = 16  # text ids after the image
ANSWER = 8  # generated ids
STAGES = ("image prepared", "vision tower and projector", "prompt read", "answer, per token")


class Conversation:
    """A model, a noise image of side × side pixels, and a question about it."""

    def __init__(self, model: Any, side: int) -> None:
        vision = model.config.vision_config
        merge = int(getattr(model.config, "spatial_merge_size", 1))
        self.model = model
        self.grid = image_grid(
            side, side, patch_size=vision.patch_size, merge=merge, longest_edge=vision.image_size
        )
        self.patches = (self.grid.rows * merge, self.grid.cols * merge)
        self.ids = _ids(self.grid, int(model.image_token_id), model.text_config.vocab_size)
        self._image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        self._processor = PixtralImageProcessor(
            size={"longest_edge": vision.image_size}, patch_size=vision.patch_size * merge
        )

    def costs(self) -> list[Cost]:
        """Return the cost of each stage."""
        return [
            Cost(0, 0),
            vision_cost(self.model, [self.patches]),
            prefill_cost(self.model, len(self.ids)),
            decode_cost(self.model, 1, len(self.ids)),
        ]

    @torch.inference_mode()
    def run(self) -> list[float]:
        """Return the seconds of each stage."""
        marks = [time.perf_counter()]
        given = self._processor(self._image, return_tensors="pt")
        pixels = given["pixel_values"].to(self.model.dtype)
        marks.append(time.perf_counter())
        features = ImageFeatures(self.model, pixels, given["image_sizes"])
        marks.append(time.perf_counter())
        runner = Runner(self.model, [Request(self.ids, features=features)], room=ANSWER)
        chosen = runner.prefill().argmax(-1)
        marks.append(time.perf_counter())
        for _ in range(ANSWER):
            chosen = runner.decode([0], chosen).argmax(-1)
        marks.append(time.perf_counter())
        spent = [after - before for before, after in pairwise(marks)]
        return [*spent[:-1], spent[-1] / ANSWER]


def bench_e2e(setting: Setting) -> Report:
    """Measure each stage against its limit, and the time to first token."""
    setting.progress("making weights")
    model = random_model(params_of(setting.geometry, setting.layers), setting.format)
    setting.progress("warming up")
    work = Conversation(model, setting.side or 512)
    read = StreamingRead(setting.geometry)
    tower = MatrixRate(tower_shapes(model, work.patches[0] * work.patches[1]))
    decoder = MatrixRate(decoder_shapes(model, min(len(work.ids), 2048)))
    limits = [read.bandwidth, tower.rate, decoder.rate, read.bandwidth]
    turns = [Turn() for _ in STAGES]
    work.run()
    for _ in setting.turns():
        before = [limit() for limit in limits]
        for turn, spent, first, limit in zip(turns, work.run(), before, limits, strict=True):
            turn.times.append(spent)
            turn.limits.append((first + limit()) / 2)
    tokens = [work.grid.tokens, work.grid.image_tokens, len(work.ids), 1]
    kinds = [READ, MULTIPLY, MULTIPLY, READ]
    stages = list(zip(STAGES, tokens, work.costs(), turns, kinds, strict=True))
    more = {
        "ids": len(work.ids),
        "image_tokens": work.grid.tokens,
        f"{STAGES[0].replace(' ', '_')}_seconds": turns[0].seconds,
        "seconds_to_first_token": sum(turn.seconds for turn in turns[:3]),
    }
    return Report("e2e", setting, this_machine(), [Measured(*stage) for stage in stages[1:]], more)


def _ids(grid: Grid, image: int, vocabulary: int) -> Tensor:
    """Return an image's ids, each row with a break id, followed by a question's."""
    other = (image + 1) % vocabulary
    row = [image] * grid.cols + [other]
    return torch.tensor([other, *row * grid.rows, *[other] * QUESTION])
