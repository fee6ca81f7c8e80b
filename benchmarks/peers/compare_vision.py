"""Vitrail's vision tower beside transformers': one image and several, the same geometry, random weights.

    python benchmarks/peers/compare_vision.py [--format bf16] [--layers 2] [--side 1024] [--images 1,4]

Layers are the tower's. The projector is part of neither side.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from comparison import Timed, compared, header, keep, numbers, options, set_threads
from turns import interleaved, ratio
from worker import Worker, clock

from vitrail.bench.geometries import params_of
from vitrail.bench.matmul import MatrixRate, tower_shapes
from vitrail.bench.random_model import random_model
from vitrail.model.cost import tower_cost


class Tower:
    """Our tower on noise of so many images."""

    def __init__(self, model: Any, images: int, side: int) -> None:
        vision = model.config.vision_config
        patches = side // vision.patch_size
        self.cost = tower_cost(model, [(patches, patches)] * images)
        self._tower = model.vision_tower
        self._pixels = torch.randn(images, 3, side, side).to(model.dtype)

    @torch.inference_mode()
    def __call__(self) -> None:
        self._tower(self._pixels)


def main() -> None:
    parser = options(__doc__, layers=2, turns=3)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--format", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--images", default="1")
    given = parser.parse_args()
    set_threads(given.threads)
    params = params_of(given.geometry, 1)
    params["vision_encoder"]["num_hidden_layers"] = given.layers
    request = {"params": params, "what": "tower", "format": given.format, "threads": given.threads}
    peer = Worker(given.peer_python, "hf.py", json.dumps(request))
    header(peer.about)
    model = random_model(params, given.format)
    patches = (given.side // model.config.vision_config.patch_size) ** 2
    limit = MatrixRate(tower_shapes(model, patches), clock)
    sides = {}
    for count in numbers(given.images):
        work = Tower(model, count, given.side)
        sides[str(count)] = Timed(work)
        compared(
            f"tower, {count} of {given.side}², {given.format}",
            sides[str(count)],
            lambda count=count: peer.ask("encode", images=count, side=given.side)["seconds"],  # type: ignore[misc]
            given.turns,
            work=work.cost.flop,
            limits={"PyTorch's products": limit.rate},
            out=given.out,
        )
    peer.close()
    if len(sides) > 1:
        found = interleaved(sides, given.turns)
        first = next(iter(sides))
        for name in list(sides)[1:]:
            factor = ratio(found, name, first)
            each = factor["median"] * int(first) / int(name)
            print(f"{name} images cost {factor['median']:.2f} × {first}: {each:.2f} each")
            keep(given.out, {"what": f"{name} images against {first}", "seconds": factor})


if __name__ == "__main__":
    main()
