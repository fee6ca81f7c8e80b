"""Encoding by kernels: the bits of its PyTorch definition on every instruction set and number of threads.

Only sums of errors are compared within roundings: the definition adds them in PyTorch's order. That codes are good ones, and
those of bitsandbytes, is in golden/.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.quantised import LAYOUTS
from tests.threads import threads
from vitrail.errors import CheckpointError
from vitrail.ops.cpu import encode as cpu_encode, library
from vitrail.ops.cpu.registry import flatten
from vitrail.ops.reference import encode as reference_encode
from vitrail.ops.weight import Layout, PackedWeight
from vitrail.quant.bitsandbytes_codes import quant_map, quantize_4bit
from vitrail.quant.formats.vitrail import quantize_own

ISAS = library.available()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NORMAL = torch.tensor([-63, -46, -35, -27, -20, -14, -8, -2, 3, 9, 14, 20, 27, 34, 44, 56], dtype=torch.int8)

pytestmark = pytest.mark.skipif(not ISAS, reason="no kernels here")

dtypes = st.sampled_from(DTYPES)
# Down to where scales and values are subnormal, up to where the largest have no scale.
spreads = st.sampled_from([1e-44, 1e-38, 1e-4, 1.0, 1e38])
# What is put where normally distributed values were; nan and inf last, for tests that have none.
PATTERNS = ("", "zeros", "minus zeros", "equal", "one sign", "outlier", "nan", "inf")


def bits(x: Tensor) -> Tensor:
    """As integers, so that signs of zeros count; which NaN a reduction of PyTorch's gives is not defined."""
    x = torch.where(x.isnan(), torch.nan, x) if x.is_floating_point() else x
    return x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def everywhere(function: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """The results, which must be the same bits on every instruction set and number of threads."""
    results = []
    for isa in ISAS:
        for count in (1, 2):
            with library.using(isa), threads(count):
                results.append(function())
    for result in results:
        alike(result, results[0])
    return results[0]


def alike(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert torch.equal(bits(one), bits(other))


def values(*shape: int, dtype: torch.dtype, spread: float, pattern: str, seed: int) -> Tensor:
    """Normally distributed, within the dtype's range, with `pattern` in rows or elements here and there."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64) * spread
    some = torch.rand(shape, generator=generator) < (0.02 if pattern in ("nan", "inf", "outlier") else 0.3)
    put = {"zeros": 0.0, "minus zeros": -0.0, "equal": spread, "nan": torch.nan, "inf": -torch.inf}
    if pattern == "one sign":
        x = x.abs()
    elif pattern == "outlier":
        x = torch.where(some, x * 50, x)
    elif pattern:
        x = torch.where(some, put[pattern], x)
        x[shape[0] // 2] = put[pattern]
    top = torch.finfo(dtype).max
    return torch.where(x.isfinite(), x.clamp(-top, top), x).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 3),
    group=st.sampled_from([32, 64, 128]),
    kind=st.sampled_from(["q4", "q8"]),
    dtype=dtypes,
    spread=spreads,
    pattern=st.sampled_from(PATTERNS),
    margin=st.sampled_from([0, 5]),
    levels=st.one_of(
        st.just(NORMAL.tolist()), st.lists(st.integers(-63, 63), min_size=16, max_size=16).map(sorted)
    ),
    seed=st.integers(0, 99),
)
def test_panels(
    rows: int,
    groups: int,
    group: int,
    kind: str,
    dtype: torch.dtype,
    spread: float,
    pattern: str,
    margin: int,
    levels: list[int],
    seed: int,
) -> None:
    wide = values(rows, groups * group + margin, dtype=dtype, spread=spread, pattern=pattern, seed=seed)
    x = wide[:, : groups * group]  # rows that may not follow one another
    table = torch.tensor(levels, dtype=torch.int8) if kind == "q4" else None
    found = everywhere(lambda: cpu_encode.encode_own(x, LAYOUTS[kind], table, group))
    alike(found, reference_encode.encode_own(x, LAYOUTS[kind], table, group))


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 40),
    group=st.sampled_from([32, 64, 128]),
    pattern=st.sampled_from(PATTERNS[:-2]),
    start=st.lists(st.floats(-63, 63, width=32), min_size=16, max_size=16).map(sorted),
    seed=st.integers(0, 99),
)
def test_a_round_of_fitting(count: int, group: int, pattern: str, start: list[float], seed: int) -> None:
    x = values(count, group, dtype=torch.float32, spread=1.0, pattern=pattern, seed=seed)
    extreme = x.gather(1, x.abs().argmax(1, keepdim=True))
    ratio = x / torch.where(extreme == 0, 1.0, extreme)
    weights, levels = extreme[:, 0] / 3, torch.tensor(start)
    (found,) = everywhere(lambda: [cpu_encode.encode_fit(ratio, weights, levels)])
    alike([found], [reference_encode.encode_fit(ratio, weights, levels)])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 1300),
    group=st.sampled_from([32, 64, 256]),
    kind=st.sampled_from(["nf4", "fp4"]),
    dtype=dtypes,
    spread=spreads,
    pattern=st.sampled_from(PATTERNS),
    seed=st.integers(0, 99),
)
def test_maps(
    count: int, group: int, kind: str, dtype: torch.dtype, spread: float, pattern: str, seed: int
) -> None:
    x, table = values(count, dtype=dtype, spread=spread, pattern=pattern, seed=seed), quant_map(kind)
    found = everywhere(lambda: cpu_encode.encode_map4(x, table, group))
    alike(found, reference_encode.encode_map4(x, table, group))


@pytest.mark.parametrize("kind", ["q4", "q8", "nf4", "fp4"])
def test_many_pieces(kind: str) -> None:
    """More than one chunk of the definition's, several of the kernel's, in an order that nobody chose."""
    x = values(90, 4096, dtype=torch.bfloat16, spread=0.02, pattern="outlier", seed=1)

    def encoded() -> Sequence[Tensor]:
        if kind in ("q4", "q8"):
            return cpu_encode.encode_own(x, LAYOUTS[kind], NORMAL if kind == "q4" else None, 32)
        return cpu_encode.encode_map4(x.view(-1), quant_map(kind), 64)

    with library.using("off"):
        wanted = encoded()
    alike(everywhere(encoded), wanted)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 3),
    kind=st.sampled_from(["q4", "q8", "nf4", "fp4"]),
    dtype=dtypes,
    rounded=dtypes,
    seed=st.integers(0, 99),
)
def test_errors(
    rows: int, columns: int, kind: str, dtype: torch.dtype, rounded: torch.dtype, seed: int
) -> None:
    foreign = kind in ("nf4", "fp4")
    width = 64 * columns - (11 if foreign else 0)  # rows of maps end anywhere
    x = values(rows, width, dtype=dtype, spread=0.1, pattern="outlier", seed=seed)
    packed = quantize_4bit(x, kind) if foreign else quantize_own(x, kind, 64)
    packed = packed.with_tensors(packed.tensors, rounded)
    (found,) = everywhere(lambda: [torch.tensor(cpu_encode.squared_error(x, packed), dtype=torch.float64)])
    torch.testing.assert_close(found, reference_encode.squared_error(x, packed), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["q4", "q8", "nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_matrix_with_and_without_kernels(kind: str, dtype: torch.dtype) -> None:
    """Levels, codes, scales: what a file would hold."""
    x = values(70, 320, dtype=dtype, spread=0.02, pattern="outlier", seed=3)

    def packed() -> Sequence[Tensor]:
        own = kind in ("q4", "q8")
        return list((quantize_own(x, kind) if own else quantize_4bit(x, kind, nested=True)).tensors.values())

    with library.using("off"):
        wanted = packed()
    alike(everywhere(packed), wanted)


@pytest.mark.parametrize("kind", ["q4", "q8"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_refused(kind: str, wrong: float) -> None:
    x = torch.randn(33, 64)
    x[32, 63] = wrong
    for isa in ("off", *ISAS):
        with library.using(isa), pytest.raises(CheckpointError, match=r"lm_head holds a value that is not"):
            quantize_own(x, kind, name="lm_head")


def test_what_no_kernel_takes_goes_through_pytorch() -> None:
    """float64, columns that are not neighbours, other groups, matrices without rows."""
    x = torch.randn(20, 96)
    for odd in (x.double(), x.t().contiguous().t(), x[:0]):
        alike(
            cpu_encode.encode_own(odd, Layout.PANELS4, NORMAL, 32),
            reference_encode.encode_own(odd.float(), Layout.PANELS4, NORMAL, 32),
        )
    flat = x.view(-1)
    for group in (16, 48):
        alike(
            cpu_encode.encode_map4(flat, quant_map("nf4"), group),
            reference_encode.encode_map4(flat, quant_map("nf4"), group),
        )
    other = quantize_own(x, "bf16")
    assert cpu_encode.squared_error(x, other) == pytest.approx(
        reference_encode.squared_error(x, other).tolist()
    )


def test_codes_that_do_not_fit_their_matrix_are_not_read_by_a_kernel() -> None:
    """The operator says what is wrong with them; a kernel would read beyond their end."""
    x = torch.randn(20, 96)
    tensors = dict(quantize_own(x, "q4").tensors)
    tensors["codes"] = tensors["codes"][:1]
    with pytest.raises(CheckpointError, match=r"codes uint8 \(1, 12, 64\).*do not fit"):
        cpu_encode.squared_error(x, PackedWeight(Layout.PANELS4, (20, 96), 32, tensors))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operators_are_known_to_the_compiler(device: str) -> None:
    """Schema, fake results and dispatch of each, by PyTorch's own check."""
    x, levels = torch.randn(20, 64, device=device), NORMAL.to(device)
    codes, scales = torch.ops.vitrail.encode_own(x, "panels4", levels, 32)
    assert codes.shape == (2, 8, 64) and scales.shape == (2, 2, 16) and codes.device.type == device
    if device == "cpu":
        packed = {"codes": codes, "scales": scales, "levels": levels}
        calls = (
            (torch.ops.vitrail.encode_own.default, (x, "panels8", None, 32)),
            (torch.ops.vitrail.encode_fit.default, (x, x[:, 0].contiguous(), levels.float())),
            (torch.ops.vitrail.encode_map4.default, (x.view(-1), quant_map("nf4"), 64)),
            (
                torch.ops.vitrail.encode_error.default,
                (x, *flatten([PackedWeight(Layout.PANELS4, (20, 64), 32, packed)])),
            ),
        )
        for operator, arguments in calls:
            torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("kind", ["q4", "q8"])
def test_the_default_type_of_tensors_does_not_matter(kind: str) -> None:
    matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    expected = quantize_own(matrix, kind, 32)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = quantize_own(matrix, kind, 32)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
