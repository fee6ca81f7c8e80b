"""Models with random weights: of the real geometry, in the packed format, finite, always the same; and their costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitrail.bench.geometries import PUBLISHED, params_of
from vitrail.bench.random_model import FORMATS, random_model
from vitrail.bench.timing import Turn, by_turns
from vitrail.errors import InputError
from vitrail.model.cost import matrix_bytes, matrix_size


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.arange(20, 28)[None]).logits
    return found


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_answers_with_numbers_of_sane_size(format: str) -> None:
    """The same weights each time; no infinities that would make a product slow or meaningless."""
    model = random_model(params_of("tiny"), format)
    found = logits(model)
    assert found.isfinite().all()
    assert 0.1 < float(found.float().std()) < 10
    assert torch.equal(found, logits(random_model(params_of("tiny"), format)))


@pytest.mark.parametrize(
    ("format", "bits"), [("q4", 4.5), ("q8", 8.5), ("nf4", 4.5), ("bf16", 16), ("f32", 32)]
)
def test_the_decoder_is_stored_with_so_many_bits(format: str, bits: float) -> None:
    layers = random_model(params_of("tiny"), format).decoder.layers
    # q4 has a table of sixteen levels for each of a layer's seven matrices beside its codes, NF4 one of sixteen floats.
    tables = {"q4": 16, "nf4": 64}.get(format, 0) * 7 * 2
    assert matrix_bytes(layers) - tables == matrix_size(layers) * bits / 8


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_geometries_keep_their_own_number_of_layers(name: str) -> None:
    assert params_of(name)["n_layers"] == PUBLISHED[name]["n_layers"]
    assert params_of(name, 3)["n_layers"] == 3


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="geometry 'huge' is not known"):
        params_of("huge")
    with pytest.raises(InputError, match="0 layers"):
        params_of("tiny", 0)
    with pytest.raises(InputError, match="format 'q3' is not known"):
        random_model(params_of("tiny"), "q3")


def test_a_share_is_the_median_of_ratios() -> None:
    """Not the ratio of medians: the machine's speed changes between turns."""
    turn = Turn(times=[1.0, 2.0, 4.0], limits=[10.0, 5.0, 5.0])
    assert turn.shares(10) == [1.0, 1.0, 0.5]
    assert turn.share(10) == 1.0
    assert (turn.seconds, turn.limit) == (2.0, 5.0)


def test_turns_alternate() -> None:
    seen: list[str] = []

    def limit() -> float:
        seen.append("limit")
        return 1.0

    def work(name: str) -> Any:
        return lambda: seen.append(name)

    turns = by_turns([work("a"), work("b")], [limit, limit], range(2))
    order = [name for at, name in enumerate(seen) if not at or seen[at - 1] != name]
    assert order == ["a", "b", "limit", "a", "limit", "b", "limit", "a", "limit", "b", "limit"]
    assert [len(turn.times) for turn in turns] == [2, 2]
