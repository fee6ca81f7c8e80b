"""With q4 weights no bit of a text's logits depends on how it is cut into steps: what operators promise, in whole models."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.bench.geometries import params_of
from vitrail.bench.random_model import random_model
from vitrail.kv.cache import KVCache
from vitrail.ops.batch import build_batch
from vitrail.ops.cpu import library

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels were built")

SMALL = {
    "dim": 96, "n_layers": 3, "head_dim": 16, "hidden_dim": 160, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 128,
    "rope_theta": 1e6, "norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip


@lru_cache(maxsize=2)
def model(geometry: str) -> Any:
    """q4 weights in bfloat16's company; "large" is one layer of Pixtral 12B with a small vocabulary."""
    if geometry == "small":
        return random_model(SMALL, "q4")
    params = {name: x for name, x in params_of("pixtral-12b", 1).items() if name != "vision_encoder"}
    return random_model({**params, "vocab_size": 256}, "q4")


def texts(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(lengths))
    return [torch.randint(3, 128, (n,), generator=generator) for n in lengths]


class Reader:
    """Texts read by a model, in steps; logits of every position."""

    def __init__(self, geometry: str, ids: list[Tensor], dtype: torch.dtype | None) -> None:
        self.model, self.ids = model(geometry), ids
        config = self.model.text_config
        self.cache = None
        if dtype is not None:
            self.cache = KVCache.sized(config, [len(x) for x in ids], dtype=dtype)
            self.rows = [self.cache.open() for _ in ids]
        self.logits: list[list[Tensor]] = [[] for _ in ids]

    def step(self, ranges: dict[int, tuple[int, int]]) -> None:
        """Positions first … last−1 of some of the texts in one step."""
        new = [b - a for a, b in ranges.values()]
        sequences = () if self.cache is None else [self.rows[n] for n in ranges]
        ids = torch.cat([self.ids[n][a:b] for n, (a, b) in ranges.items()])
        batch = build_batch(new, cache=self.cache, sequences=sequences)
        assert batch.positions.tolist() == [at for a, b in ranges.values() for at in range(a, b)]
        with torch.no_grad():
            found = self.model.step(self.model.embed(ids), batch, self.cache)
        for n, piece in zip(ranges, found.split(new), strict=True):
            self.logits[n].append(piece)

    def result(self) -> list[Tensor]:
        return [torch.cat(pieces) for pieces in self.logits]


def whole(geometry: str, ids: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Every text alone and in one step."""
    found = []
    for text in ids:
        reader = Reader(geometry, [text], dtype)
        reader.step({0: (0, len(text))})
        found += reader.result()
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert bool(ours.isfinite().all())
        assert torch.equal(ours, theirs)


def check(geometry: str, lengths: list[int], cuts: list[int], dtype: torch.dtype) -> None:
    """Alone = together = in chunks = row by row; without a cache too where the cache keeps all bits."""
    ids = texts(lengths)
    expected = whole(geometry, ids, dtype)
    if dtype == model(geometry).dtype:
        assert_same(whole(geometry, ids, None), expected)
    together = Reader(geometry, ids, dtype)
    together.step({n: (0, length) for n, length in enumerate(lengths)})
    assert_same(together.result(), expected)
    chunked = Reader(geometry, ids, dtype)
    for first, last in pairwise([0, *cuts, max(lengths)]):
        ranges = {n: (first, min(last, length)) for n, length in enumerate(lengths) if first < length}
        chunked.step(ranges)
    assert_same(chunked.result(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8])
@pytest.mark.parametrize("cuts", [[1], [31, 33], [5, 6, 7, 40], list(range(1, 70))])
def test_a_small_model(cuts: list[int], dtype: torch.dtype) -> None:
    for isa in library.available()[-2:]:
        with library.using(isa):
            check("small", [70, 1, 37], cuts, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_layer_of_pixtral_12b(dtype: torch.dtype) -> None:
    check("large", [38, 3], [1, 2, 30, 36, 37], dtype)


def test_the_small_model_in_float32() -> None:
    """Activations in float32 with a cache of the same: nothing is rounded that could hide a difference."""
    network = model("small")
    dtype = network.dtype
    try:
        network.float()
        check("small", [70, 9], [13, 14, 50], torch.float32)
    finally:
        network.to(dtype)
