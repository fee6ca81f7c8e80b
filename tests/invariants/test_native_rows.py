"""The kernels on single rows: their PyTorch definitions' values, and the same bits on every instruction set.

Rotary equals its definition bit for bit. The norm adds its squares in another order than PyTorch, and SwiGLU has an
exponential of its own: they are compared in units of the result's last place.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.threads import threads
from vitrail.ops.cpu import library, rows as cpu_rows
from vitrail.ops.rope import angles, cos_sin, frequencies

ISAS = library.available()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Roundings of the type itself, relative; float32 allows the sums and the exponential a few of their own.
LAST_PLACE = {torch.float32: 4e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}

pytestmark = pytest.mark.skipif(not ISAS, reason="no kernels here")


def normal(*shape: int, dtype: torch.dtype, seed: int = 0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * spread).to(dtype)


def alike(found: Tensor, expected: Tensor, places: float) -> None:
    """Equal within `places` units of the last place of their dtype; silu below −88 is nearly 0 instead of 0."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    tolerance = places * LAST_PLACE[found.dtype]
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=5e-36, equal_nan=True)


def bits(x: Tensor) -> Tensor:
    """As integers, so that signs of zeros and NaNs count."""
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def everywhere(function: Callable[[], Tensor]) -> Tensor:
    """The result, which must be the same bits on every instruction set and number of threads."""
    results = []
    for isa in ISAS:
        for count in (1, 3):
            with library.using(isa), threads(count):
                results.append(function())
    for result in results:
        assert torch.equal(bits(result), bits(results[0]))
    return results[0]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 131),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([1e-3, 1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_norm(rows: int, width: int, dtype: torch.dtype, spread: float, seed: int) -> None:
    x = normal(rows, width, dtype=dtype, spread=spread, seed=seed)
    weight = normal(width, dtype=dtype, seed=seed + 1)
    found = everywhere(lambda: cpu_rows.rms_norm(x, weight, 1e-5))
    # Two roundings, each of which may fall the other way after the factor's last bit.
    alike(found, cpu_rows.rms_norm_oracle(x, weight, 1e-5), 3)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(0, 200),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 99),
)
def test_swiglu(count: int, dtype: torch.dtype, spread: float, seed: int) -> None:
    gate, up = normal(count, dtype=dtype, spread=spread, seed=seed), normal(count, dtype=dtype, seed=seed + 1)
    found = everywhere(lambda: cpu_rows.silu_gate(gate, up))
    alike(found, cpu_rows.silu_gate_oracle(gate, up), 3)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(0, 9),
    heads=st.integers(1, 5),
    groups=st.integers(1, 3),
    half=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_rotary(rows: int, heads: int, groups: int, half: int, dtype: torch.dtype, seed: int) -> None:
    q = normal(rows, heads, 2 * half, dtype=dtype, seed=seed)
    k = normal(rows, groups, 2 * half, dtype=dtype, seed=seed + 1)
    cos, sin = cos_sin(angles(torch.arange(rows) * 977, frequencies(2 * half, 1e6)), dtype)
    expected = cpu_rows.rotate_pair_oracle(q, k, cos, sin)
    for index in range(2):
        found = everywhere(lambda index=index: cpu_rows.rotate_pair(q, k, cos, sin)[index])  # type: ignore[misc]
        assert torch.equal(found, expected[index])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    x, weight = normal(37, 1000, dtype=dtype), normal(1000, dtype=dtype, seed=1)
    whole = cpu_rows.rms_norm(x, weight, 1e-5)
    gated = cpu_rows.silu_gate(x, whole)
    for row in range(37):
        assert torch.equal(cpu_rows.rms_norm(x[row : row + 1], weight, 1e-5)[0], whole[row])
        assert torch.equal(cpu_rows.silu_gate(x[row], whole[row]), gated[row])


@pytest.mark.parametrize("isa", ISAS)
def test_silu_over_its_whole_range(isa: str) -> None:
    """Within 3 units of the last place of float32 where the result is a normal number; tails, infinities and NaN."""
    x = torch.cat(
        [torch.linspace(-87, 87, 20001), torch.logspace(-30, 38, 3000), -torch.logspace(-30, 1.9, 3000)]
    )
    with library.using(isa):
        found = cpu_rows.silu_gate(x, torch.ones_like(x))
        ends = torch.tensor([-1e38, -200.0, -90.0, 0.0, -0.0, torch.inf, torch.nan, 3e38])
        tails = cpu_rows.silu_gate(ends, torch.ones_like(ends))
    exact = x.double() / (1 + torch.exp(-x.double()))
    assert ((found.double() - exact).abs() <= 3 * 2.0**-23 * exact.abs()).all()
    assert (tails[:3].abs() < 1e-36).all() and (tails[3:5] == 0).all()
    assert tails[5] == torch.inf and tails[6].isnan() and tails[7] == ends[7]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_nans(isa: str, dtype: torch.dtype) -> None:
    """A row with one is none of its neighbours' business; roundings keep NaN NaN and overflow to infinity."""
    x = normal(3, 50, dtype=dtype)
    x[1, 7] = torch.nan
    weight = torch.full((50,), torch.finfo(dtype).max, dtype=dtype)
    with library.using(isa):
        found = cpu_rows.rms_norm(x, weight, 1e-5)
    expected = cpu_rows.rms_norm_oracle(x, weight, 1e-5)
    assert torch.equal(found.isnan(), expected.isnan()) and found[1].isnan().all()
    sure = expected[0].abs() > 0
    assert torch.equal(found[0].isinf() & sure, expected[0].isinf() & sure)


def test_what_no_kernel_takes_goes_through_pytorch() -> None:
    """float64, mixed types, strides: the definition's result."""
    x = torch.randn(4, 6, dtype=torch.float64)
    weight = torch.randn(6, dtype=torch.float64)
    assert torch.equal(cpu_rows.rms_norm(x, weight, 1e-5), cpu_rows.rms_norm_oracle(x, weight, 1e-5))
    half = x.bfloat16()
    mixed = cpu_rows.rms_norm(half, weight.float(), 1e-5)
    assert torch.equal(mixed, cpu_rows.rms_norm_oracle(half, weight.float(), 1e-5))
    turned = x.float().t()
    assert torch.equal(
        cpu_rows.rms_norm(turned, torch.ones(4), 1e-5),
        cpu_rows.rms_norm(turned.contiguous(), torch.ones(4), 1e-5),
    )


def test_gradients_flow_through_pytorch() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    weight = torch.randn(8)
    gate = cpu_rows.silu_gate(cpu_rows.rms_norm(x, weight, 1e-5), x)
    q, k = cpu_rows.rotate_pair(gate.view(3, 2, 4), x.view(3, 2, 4), torch.ones(3, 4), torch.zeros(3, 4))
    (q.sum() + k.sum()).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    with torch.no_grad():
        assert not cpu_rows.rms_norm(x, weight, 1e-5).requires_grad


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operators_are_known_to_the_compiler(device: str) -> None:
    """Schema, fake results and dispatch of each, by PyTorch's own check."""
    x, weight = torch.randn(3, 8, device=device), torch.randn(8, device=device)
    assert torch.ops.vitrail.rms_norm(x, weight, 1e-5).device.type == device
    if device == "cpu":
        q, cos = torch.randn(3, 2, 8), torch.randn(3, 8)
        calls = (
            (torch.ops.vitrail.rms_norm.default, (x, weight, 1e-5)),
            (torch.ops.vitrail.silu_gate.default, (x, x)),
            (torch.ops.vitrail.rotate_pair.default, (q, q, cos, cos)),
        )
        for operator, arguments in calls:
            torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
