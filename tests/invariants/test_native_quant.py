"""The kernels of q4 and q8 equal their PyTorch definition in every bit: on every instruction set, whatever the shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.quantised import LAYOUTS
from tests.threads import threads
from vitrail.errors import CheckpointError
from vitrail.ops.cpu import library
from vitrail.ops.cpu.quant import quant_rows
from vitrail.ops.linear import linear, linear_group
from vitrail.ops.reference.quant_matmul import rounded_products
from vitrail.ops.weight import PackedWeight, dequantize_rows
from vitrail.quant.formats.vitrail import quantize_own

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels were built")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def random_weight(kind: str, out: int, columns: int, group: int, seed: int) -> PackedWeight:
    """Codes of every value, scales of either sign over many magnitudes."""
    g = torch.Generator().manual_seed(seed)
    panels = -(-out // 16)
    codes = torch.randint(0, 256, (panels, columns // (8 if kind == "q4" else 4), 64), generator=g)
    scales = torch.randn(panels, columns // group, 16, generator=g) * 2.0 ** torch.randint(
        -20, 8, (panels, columns // group, 16), generator=g
    )
    tensors = {"codes": codes.to(torch.uint8), "scales": scales.bfloat16()}
    if kind == "q8":
        tensors["codes"] = (codes - 128).clamp(min=-127).to(torch.int8)
    else:
        tensors["levels"] = torch.randint(-63, 64, (16,), generator=g).sort().values.to(torch.int8)
        tensors["levels"][0], tensors["levels"][15] = -63, 63
    return PackedWeight(LAYOUTS[kind], (out, columns), group, tensors)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, where a NaN is a NaN."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["q4", "q8"]),
    isa=st.sampled_from(library.available() or ("off",)),
    group=st.sampled_from([32, 64, 128]),
    out=st.integers(1, 70),
    groups=st.integers(1, 20),
    rows=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    count=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_equal_the_definition(
    kind: str,
    isa: str,
    group: int,
    out: int,
    groups: int,
    rows: int,
    dtype: torch.dtype,
    count: int,
    bias: bool,
    seed: int,
) -> None:
    columns = group * min(groups, 1536 // group)
    weight = random_weight(kind, out, columns, group, seed)
    g = torch.Generator().manual_seed(seed + 1)
    x = (torch.randn(rows, columns, generator=g) * 10.0 ** torch.randint(-6, 4, (rows, 1), generator=g)).to(
        dtype
    )
    added = torch.randn(out, generator=g).to(dtype) if bias else None
    with library.using(isa), threads(count):
        got = linear(x, weight, added)
    assert same(got, rounded_products(x, [weight], [added])[0])


@pytest.mark.parametrize("isa", library.available())
@pytest.mark.parametrize("kind", ["q4", "q8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 32, 33, 64, 65, 80, 129])
def test_rows_alone_and_together_are_the_same(isa: str, kind: str, rows: int) -> None:
    """Batch = single, chunked = whole: a row's result never depends on how many rows there are."""
    weight = random_weight(kind, 150, 640, 32, rows)
    x = torch.randn(rows, 640, generator=torch.Generator().manual_seed(rows))
    with library.using(isa):
        whole = linear(x, weight)
        assert torch.equal(whole, torch.cat([linear(part, weight) for part in x.split(max(1, rows // 3))]))
        assert torch.equal(whole[rows // 2], linear(x[rows // 2], weight))


@pytest.mark.parametrize("isa", library.available())
@pytest.mark.parametrize("kind", ["q4", "q8"])
def test_weights_of_one_call(isa: str, kind: str) -> None:
    """linear_group rounds x once; each result is that of the weight alone, whatever their sizes and groups."""
    weights = [random_weight(kind, out, 256, 32, out) for out in (48, 17, 200)]
    mixed = [*weights, random_weight(kind, 20, 256, 64, 1)]
    x = torch.randn(2, 3, 256)
    with library.using(isa):
        for chosen in (weights, mixed):
            together = linear_group(x, chosen)
            assert all(torch.equal(y, linear(x, w)) for y, w in zip(together, chosen, strict=True))
    with library.using("off"):
        assert all(torch.equal(y, z) for y, z in zip(together, linear_group(x, mixed), strict=True))


@pytest.mark.parametrize("isa", library.available())
@pytest.mark.parametrize("kind", ["q4", "q8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_activations(isa: str, kind: str, dtype: torch.dtype) -> None:
    """Zeros, values that are not finite, the smallest and the largest numbers, ties in rounding."""
    weight = quantize_own(torch.randn(40, 128, generator=torch.Generator().manual_seed(0)), kind)
    x = torch.zeros(10, 128)
    x[1] = torch.linspace(-127, 127, 128).round() + 0.5
    x[2], x[2, 5] = 1.0, torch.nan
    x[3], x[3, 127] = 1.0, torch.inf
    x[4, 3] = -torch.inf
    x[5] = 1e-38 * torch.arange(128)
    x[6] = 3e38
    x[7, ::2] = torch.finfo(dtype).max
    x[8, 64] = 1.1e-30
    x[9, 1] = 0.9e-30
    x = x.to(dtype)
    with library.using(isa):
        y = linear(x, weight)
    assert same(y, rounded_products(x, [weight], [None])[0])
    assert y[2:5].isnan().all()
    assert y[0].eq(0).all() and y[9].eq(0).all()
    if dtype != torch.float16:
        assert y[8].ne(0).any()


def test_every_float16_and_bfloat16_is_widened_exactly() -> None:
    weight = random_weight("q4", 16, 32, 32, 3)
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        x = bits.view(dtype).view(-1, 32)
        want = rounded_products(x, [weight], [None])[0]
        for isa in library.available():
            with library.using(isa):
                assert same(linear(x, weight), want), isa


def test_no_rows_and_tensors_that_do_not_fit() -> None:
    weight = random_weight("q4", 20, 64, 32, 0)
    assert linear(torch.empty(0, 64), weight).shape == (0, 20)
    short = weight.with_tensors({**weight.tensors, "scales": weight.tensors["scales"][:, :1].contiguous()})
    with pytest.raises(CheckpointError, match=r"panels4 matrix of 20 rows.*scales"):
        linear(torch.zeros(1, 64), short)


def test_shapes_on_the_meta_device() -> None:
    weight = random_weight("q4", 20, 64, 32, 0)
    on_meta = weight.with_tensors({name: t.to("meta") for name, t in weight.tensors.items()})
    assert linear(torch.empty(3, 64, device="meta"), on_meta).shape == (3, 20)


@pytest.mark.slow
def test_a_product_is_compiled_without_a_break() -> None:
    weight = random_weight("q4", 20, 64, 32, 0)
    x = torch.randn(3, 64)
    with torch.no_grad():
        compiled = torch.compile(lambda x: linear(x, weight), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), linear(x, weight))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["q4", "q8"])
def test_shapes_of_the_real_geometry(kind: str) -> None:
    """Pixtral 12B's MLP, 14336 × 5120: one row, a few and a chunk of a prompt give the same bits, on one thread or two."""
    weight = random_weight(kind, 14336, 5120, 32, 0)
    x = torch.randn(33, 5120, generator=torch.Generator().manual_seed(1)).bfloat16()
    want = rounded_products(x[:3], [weight], [None])[0]
    for count in (1, 2):
        with threads(count):
            whole = linear(x, weight)
            assert torch.equal(whole[:3], want)
            assert torch.equal(whole[:1], linear(x[:1], weight))
            assert torch.equal(whole[20:29], linear(x[20:29], weight))


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["q4", "q8"]),
    group=st.sampled_from([32, 64, 128]),
    out=st.integers(1, 70),
    groups=st.integers(1, 9),
    count=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_rows_of_a_table_equal_the_definition(
    kind: str, group: int, out: int, groups: int, count: int, dtype: torch.dtype, seed: int
) -> None:
    packed = random_weight(kind, out, group * groups, group, seed)
    weight = packed.with_tensors(packed.tensors, dtype)
    ids = torch.randint(0, out, (count,), generator=torch.Generator().manual_seed(seed))
    assert same(quant_rows(weight, ids), dequantize_rows(weight, ids))


@pytest.mark.parametrize("id", [-1, 20, 31, 2**40])
def test_an_id_outside_the_table_is_an_error(id: int) -> None:
    """20 … 31 lie in the last panel, behind the last row."""
    with pytest.raises(IndexError, match=r"20 rows lie in 0 … 19; got 3 … \d+|got -1 … 3"):
        quant_rows(random_weight("q8", 20, 32, 32, 0), torch.tensor([3, id]))


def test_ids_that_are_no_integers_are_an_error() -> None:
    with pytest.raises(IndexError):
        quant_rows(random_weight("q8", 20, 32, 32, 0), torch.tensor([1.7]))
