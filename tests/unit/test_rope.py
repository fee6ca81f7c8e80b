"""Rotary embedding: frequencies and YaRN's worked values, two dimensions, temperature; relative by nature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from vitrail.ops import rope


def test_frequencies_are_powers_of_theta() -> None:
    found = rope.frequencies(8, 10000.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([1.0, 0.1, 0.01, 0.001]))


@settings(max_examples=50, deadline=None)
@given(
    width=st.sampled_from([4, 12, 88, 128]),
    theta=st.sampled_from([1e4, 1e6, 1e9]),
    first=st.integers(0, 900),
    second=st.integers(0, 900),
    shift=st.integers(0, 900),
)
def test_scores_depend_on_the_distance_only(
    width: int, theta: float, first: int, second: int, shift: int
) -> None:
    generator = torch.Generator().manual_seed(width)
    q, k = torch.randn(2, 1, 1, width, generator=generator, dtype=torch.float64)

    def score(a: int, b: int) -> float:
        angle = rope.angles(torch.tensor([a, b]), rope.frequencies(width, theta)).double()
        cos, sin = rope.cos_sin(angle, torch.float64)
        turned = rope.rotate(q, cos[:1], sin[:1]) * rope.rotate(k, cos[1:], sin[1:])
        return float(turned.sum())

    assert score(first, second) == pytest.approx(score(first + shift, second + shift), abs=2e-3)
    assert score(first, first) == pytest.approx(float((q * k).sum()), abs=1e-9)


def test_rotation_pairs_an_element_with_the_one_half_a_head_away() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
    cos, sin = rope.cos_sin(torch.tensor([[0.3, 0.0]]), torch.float32)
    torch.testing.assert_close(
        rope.rotate(x, cos, sin)[0, 0], torch.tensor([math.cos(0.3), 0.0, math.sin(0.3), 0.0])
    )


def test_rows_turn_even_frequencies_and_columns_odd_ones() -> None:
    """Angles of patch (r, c) are [r·f0, r·f2, …, c·f1, c·f3, …] (docs/formats.md, "Tower (MI, TF)")."""
    inv_freq = rope.frequencies(88, 10000.0)
    found = rope.grid_angles(torch.tensor([3]), torch.tensor([5]), inv_freq)
    assert found.shape == (1, 44)
    expected = [3 * float(f) for f in inv_freq[0::2]] + [5 * float(f) for f in inv_freq[1::2]]
    torch.testing.assert_close(found[0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("theta", "original", "low", "high"),
    [(1e6, 16384, 20, 37), (1e8, 8192, 12, 25), (1e9, 16384, 13, 25)],
    ids=["ministral-3", "devstral-2", "14b"],
)
def test_yarn_keeps_fast_and_divides_slow_frequencies(
    theta: float, original: int, low: int, high: int
) -> None:
    """The ramp's ends are the worked values of docs/formats.md, "Text", for heads of 128."""
    plain = rope.frequencies(128, theta)
    found = rope.yarn_frequencies(128, theta, factor=16.0, original_positions=original)
    ratio = found / plain
    torch.testing.assert_close(ratio[: low + 1], torch.ones(low + 1))
    torch.testing.assert_close(ratio[high:], torch.full((64 - high,), 1 / 16))
    middle = ratio[low : high + 1]
    assert bool((middle.diff() < 0).all())
    steps = (1 - middle) / (1 - 1 / 16)
    torch.testing.assert_close(steps, torch.linspace(0, 1, high - low + 1), rtol=0, atol=1e-5)


def test_yarn_whose_ramp_has_no_width_is_finite() -> None:
    found = rope.yarn_frequencies(2, 1e4, factor=4.0, original_positions=1)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize(
    ("factor", "mscale", "all_dim", "expected"),
    [
        (16.0, 1.0, 1.0, 1.0),
        (16.0, None, None, 0.1 * math.log(16) + 1),
        (16.0, 0.707, None, 0.1 * math.log(16) + 1),
        (16.0, 2.0, 1.0, (0.2 * math.log(16) + 1) / (0.1 * math.log(16) + 1)),
        (1.0, None, None, 1.0),
        (0.5, 1.0, 2.0, 1.0),
    ],
)
def test_attention_factor(
    factor: float, mscale: float | None, all_dim: float | None, expected: float
) -> None:
    assert rope.yarn_attention_factor(factor, mscale, all_dim) == pytest.approx(expected)


def test_query_temperature_grows_by_steps() -> None:
    positions = torch.tensor([0, 31, 32, 63, 64, 320])
    found = rope.query_temperature(positions, 0.1, 32)
    expected = [
        1.0,
        1.0,
        1 + 0.1 * math.log(2),
        1 + 0.1 * math.log(2),
        1 + 0.1 * math.log(3),
        1 + 0.1 * math.log(11),
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_angles_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    angle = rope.angles(torch.tensor([131071]), rope.frequencies(128, 1e9))
    cos, sin = rope.cos_sin(angle, dtype, 1.3)
    exact = angle.double().repeat(1, 2)
    torch.testing.assert_close(cos, (exact.cos() * 1.3).to(dtype), rtol=torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(sin, (exact.sin() * 1.3).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-5)
