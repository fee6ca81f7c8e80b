"""Attention's kernels: a row's result depends on nothing but its position, keys and values; and it is near the truth.

Equalities are of bits. Nearness is to a walk in float64, which is the kernels' definition without its roundings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.threads import threads
from vitrail.errors import InputError
from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.cpu import attention as cpu_attention, kv as cpu_kv, library
from vitrail.ops.kv import BlockTables, LayerKV
from vitrail.ops.reference import attention as reference_attention
from vitrail.ops.segments import Segments

pytestmark = pytest.mark.skipif(not library.available(), reason="no kernels were built")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WALK = 32  # kKvTile of native/attention.h


@dataclass
class Case:
    """Whole sequences q (S, A, K), k, v (S, G, K), and how they are looked at."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    scale: float
    window: int | None = None
    causal: bool = True

    @property
    def totals(self) -> list[int]:
        return [len(x) for x in self.q]

    def fresh(self) -> list[Tensor]:
        """Every sequence without a cache, all in one call."""
        segments = Segments.new(self.totals, causal=self.causal)
        packed = [torch.cat(x) for x in (self.q, self.k, self.v)]
        out = torch.ops.vitrail.attention(
            *packed, segments.cu_seqlens_q, segments.seq_lens_k, self.causal, self.scale, self.window
        )
        return list(out.split(self.totals))

    def cached(self, held: Cache, ranges: list[tuple[int, int]]) -> list[Tensor]:
        """Rows first … last−1 of every sequence after what is cached, in one call; their keys are written first."""
        past, new = [first for first, _ in ranges], [last - first for first, last in ranges]
        pieces = [
            torch.cat([x[a:b] for x, (a, b) in zip(rows, ranges, strict=True)])
            for rows in (self.q, self.k, self.v)
        ]
        slots = torch.cat([held.slots(n, a, b) for n, (a, b) in enumerate(ranges)])
        torch.ops.vitrail.cache_write(pieces[1], pieces[2], held.keys, held.values, held.scales, slots)
        segments = Segments.new(new, past)
        out = torch.ops.vitrail.attention_cached(
            pieces[0], held.keys, held.values, held.scales, held.table, segments.cu_seqlens_q, segments.seq_lens_k,
            self.scale, self.window,
        )  # fmt: skip
        return list(out.split(new))


@dataclass
class Cache:
    """Blocks in scattered order. What nobody wrote is NaN."""

    keys: Tensor
    values: Tensor
    scales: Tensor | None
    table: Tensor

    @classmethod
    def empty(cls, case: Case, dtype: torch.dtype, block: int, seed: int) -> Cache:
        counts = [-(-total // block) for total in case.totals]
        order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed)).tolist()
        rows = [[order.pop() for _ in range(count)] for count in counts]
        table = torch.tensor([row + [0] * (max(counts) - len(row)) for row in rows], dtype=torch.int32)
        shape = (sum(counts), block, *case.k[0].shape[1:])
        if dtype != torch.int8:
            return cls(
                torch.full(shape, torch.nan, dtype=dtype),
                torch.full(shape, torch.nan, dtype=dtype),
                None,
                table,
            )
        scales = torch.full((2, *shape[:3]), torch.nan)
        return cls(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), scales, table)

    def slots(self, sequence: int, first: int, last: int) -> Tensor:
        at, block = torch.arange(first, last), self.keys.shape[1]
        return self.table[sequence, at // block].long() * block + at % block

    def held(self, case: Case) -> Case:
        """The case with keys and values as they lie here, float64."""
        sides = []
        for side, stored in enumerate((self.keys, self.values)):
            wide = stored.double()
            if self.scales is not None:
                wide = wide * self.scales[side].double()[..., None]
            flat = wide.flatten(0, 1)
            sides.append([flat[self.slots(n, 0, total)] for n, total in enumerate(case.totals)])
        return replace(case, k=sides[0], v=sides[1])


def walk(case: Case) -> list[Tensor]:
    """The definition in float64: block after block of WALK positions, rescaling what was summed."""
    found = []
    for q, k, v in zip(case.q, case.k, case.v, strict=True):
        heads = q.shape[1] // k.shape[1]
        k, v = (x.double().repeat_interleave(heads, 1) for x in (k, v))
        row = torch.arange(len(q))[:, None]
        best = torch.full((q.shape[1], len(q)), -torch.inf, dtype=torch.float64)
        norm, out = torch.zeros_like(best), torch.zeros(q.shape[1], len(q), q.shape[2], dtype=torch.float64)
        for at in range(0, len(q), WALK):
            key = torch.arange(at, min(at + WALK, len(q)))[None]
            hidden = (key > row) if case.causal else torch.zeros(len(q), key.shape[1], dtype=torch.bool)
            if case.window is not None:
                hidden = hidden | (key <= row - case.window)
            scores = torch.einsum("tak,sak->ats", q.double(), k[key[0]]) * case.scale
            scores = scores.masked_fill(hidden, -torch.inf)
            higher = torch.maximum(best, scores.amax(2))
            anchor = higher.masked_fill(higher.isinf(), 0.0)
            weights, fade = torch.exp(scores - anchor[..., None]), torch.exp(best - anchor)
            norm = norm * fade + weights.sum(2)
            out = out * fade[..., None] + torch.einsum("ats,sak->atk", weights, v[key[0]])
            best = higher
        found.append((out / norm[..., None]).transpose(0, 1))
    return found


def make(
    lengths: list[int], heads: int, groups: int, width: int, dtype: torch.dtype, *, seed: int = 0,
    window: int | None = None, causal: bool = True,
) -> Case:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def noise(number: int) -> list[Tensor]:
        return [(1.5 * torch.randn(n, number, width, generator=generator)).to(dtype) for n in lengths]

    return Case(noise(heads), noise(groups), noise(groups), width**-0.5, window, causal)


@st.composite
def cases(draw: st.DrawFn, *, causal: bool = True) -> Case:
    lengths = draw(st.lists(st.integers(1, 90), min_size=1, max_size=3))
    groups = draw(st.sampled_from([1, 2, 3]))
    return make(
        lengths,
        groups * draw(st.sampled_from([1, 2, 4, 7])),
        groups,
        draw(st.sampled_from([1, 6, 8, 16, 40, 64, 72])),
        draw(st.sampled_from(FLOATS)),
        seed=draw(st.integers(0, 1000)),
        window=draw(st.none() | st.integers(1, 100)) if causal else None,
        causal=causal,
    )


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert not bool(ours.isnan().any())
        assert torch.equal(ours, theirs)


def assert_near(found: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> None:
    """Scores are sums of at most 72 products and weights are right to 2^-22 here; the result is rounded to its type once."""
    bound = 4e-6 + torch.finfo(dtype).eps / (1 if dtype != torch.float32 else 2)
    for ours, true in zip(found, exact, strict=True):
        assert float((ours.double() - true).abs().max()) <= bound * float(true.abs().max())


@settings(max_examples=25)
@given(cases(), st.sampled_from([1, 4, 32, 64]), st.integers(0, 99), st.data())
def test_chunks_batches_threads_and_the_cache_change_no_bit(
    case: Case, block: int, seed: int, data: st.DataObject
) -> None:
    dtype = case.q[0].dtype
    for isa in library.available():
        with library.using(isa):
            whole = case.fresh()
            # One sequence alone, on several threads.
            for n in range(len(case.q)):
                alone = replace(case, q=case.q[n : n + 1], k=case.k[n : n + 1], v=case.v[n : n + 1])
                with threads(data.draw(st.integers(1, 3))):
                    assert_same(alone.fresh(), whole[n : n + 1])
            # All sequences through a cache, cut anywhere.
            held = Cache.empty(case, dtype, block, seed)
            cuts = sorted({0, *data.draw(st.lists(st.integers(1, 90), max_size=4)), max(case.totals)})
            found: list[list[Tensor]] = [[] for _ in case.q]
            for first, last in pairwise(cuts):
                ranges = [(min(first, total), min(last, total)) for total in case.totals]
                for rows, piece in zip(found, case.cached(held, ranges), strict=True):
                    rows.append(piece)
            assert_same([torch.cat(rows) for rows in found], whole)


@settings(max_examples=12)
@given(cases(), st.sampled_from([*FLOATS, torch.int8]), st.sampled_from([1, 4, 32]), st.integers(0, 99))
def test_row_by_row_from_a_cache_of_any_type_equals_all_at_once(
    case: Case, held_as: torch.dtype, block: int, seed: int
) -> None:
    for isa in library.available():
        with library.using(isa):
            held = Cache.empty(case, held_as, block, seed)
            whole = case.cached(held, [(0, total) for total in case.totals])
            again = Cache.empty(case, held_as, block, seed + 1)
            rows: list[list[Tensor]] = [[] for _ in case.q]
            for t in range(max(case.totals)):
                ranges = [(min(t, total), min(t + 1, total)) for total in case.totals]
                for kept, piece in zip(rows, case.cached(again, ranges), strict=True):
                    kept.append(piece)
            assert_same([torch.cat(kept) for kept in rows], whole)
            exact = walk(held.held(case))
            assert_near(whole, exact, case.q[0].dtype)


@settings(max_examples=15)
@given(cases(causal=False), st.integers(1, 3))
def test_images_are_near_the_walk_whatever_is_beside_them(case: Case, count: int) -> None:
    for isa in library.available():
        with library.using(isa), threads(count):
            found = case.fresh()
            assert_near(found, walk(case), case.q[0].dtype)
            for n in range(len(case.q)):
                alone = replace(case, q=case.q[n : n + 1], k=case.k[n : n + 1], v=case.v[n : n + 1])
                assert_same(alone.fresh(), found[n : n + 1])


@pytest.mark.parametrize("held_as", [*FLOATS, torch.int8])
def test_kernel_and_definition_are_near(held_as: torch.dtype) -> None:
    """The definition is PyTorch's softmax attention: both sum in float32, in other orders."""
    case = make([90, 41], 8, 2, 128, torch.float32, window=None)
    held = Cache.empty(case, held_as, 32, 1)
    case.cached(held, [(0, 60), (0, 40)])
    ranges = [(60, 90), (40, 41)]
    found = torch.cat(case.cached(held, ranges))
    with library.using("off"):
        expected = torch.cat(case.cached(held, ranges))
    assert float((found - expected).abs().max()) <= 4e-6 * float(expected.abs().max())


@pytest.mark.parametrize("held_as", [torch.bfloat16, torch.int8])
def test_instruction_sets_with_fused_products_give_the_same_bits(held_as: torch.dtype) -> None:
    """Sums are in one order for vectors of every width."""
    case = make([75, 33], 6, 2, 40, torch.bfloat16, window=50)
    found = []
    for isa in library.available():
        if isa != "portable":
            with library.using(isa):
                found.append(case.cached(Cache.empty(case, held_as, 32, 0), [(0, 75), (0, 33)]))
    for other in found[1:]:
        assert_same(other, found[0])


def test_the_walk_is_softmax_attention() -> None:
    case = make([70], 4, 2, 8, torch.float64, window=40)
    q, k, v = case.q[0], case.k[0].repeat_interleave(2, 1), case.v[0].repeat_interleave(2, 1)
    row, key = torch.arange(70)[:, None], torch.arange(70)[None]
    hidden = (key > row) | (key <= row - 40)
    scores = (torch.einsum("tak,sak->ats", q, k) * case.scale).masked_fill(hidden, -torch.inf)
    expected = torch.einsum("ats,sak->tak", scores.softmax(-1), v)
    torch.testing.assert_close(walk(case)[0], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("held_as", [torch.float32, torch.int8])
def test_what_is_not_finite_reaches_only_the_rows_that_see_it(value: float, held_as: torch.dtype) -> None:
    clean = make([70], 4, 2, 16, torch.float32)
    case = make([70], 4, 2, 16, torch.float32)
    for side in (case.k[0], case.v[0]):
        side[50, 1, 3] = value
    for isa in library.available():
        with library.using(isa):
            found, before = (x.cached(Cache.empty(x, held_as, 32, 0), [(0, 70)])[0] for x in (case, clean))
            assert torch.equal(found[:50], before[:50]) and torch.equal(found[50:, :2], before[50:, :2])
            assert bool(found[50:, 2:].isnan().any(dim=-1).all())


@pytest.mark.parametrize("factor", [1e4, 1e18])
def test_scores_far_from_zero(factor: float) -> None:
    """One key takes all the weight; scores beyond float32's greatest number give NaN, as softmax does."""
    case = make([80], 2, 1, 16, torch.float32)
    case.q = [factor * x for x in case.q]
    for isa in library.available():
        with library.using(isa):
            found = case.fresh()[0]
            best = torch.einsum("tak,sgk->ats", case.q[0].double(), case.k[0].double())
            hidden = torch.arange(80)[None] > torch.arange(80)[:, None]
            chosen = best.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float64)
            expected = torch.einsum("ats,sk->tak", chosen, case.v[0][:, 0].double())
            assert float((found.double() - expected).abs().max()) <= 2e-3


def test_powers_of_two_are_within_two_units_of_the_last_place() -> None:
    x = torch.cat([torch.linspace(-126, 0, 200_001), -torch.logspace(-10, 2, 50_001)])
    exact = torch.exp2(x.double())
    unit = torch.from_numpy(np.spacing(exact.float().numpy())).double()
    for isa in library.available():
        with library.using(isa):
            error = (cpu_attention.exp2(x).double() - exact).abs() / unit
            assert float(error.max()) <= (2 if isa == "portable" else 1)
            ends = cpu_attention.exp2(torch.tensor([0.0, -1.0, -127.0, -1e30, -torch.inf, torch.nan]))
            assert ends[:5].tolist() == [1, 0.5, 0, 0, 0] and bool(ends[5].isnan())


# --- the cache's writes ----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.sampled_from(FLOATS), st.sampled_from([*FLOATS, torch.int8]), st.integers(0, 9), st.integers(1, 3),
    st.sampled_from([1, 3, 8, 50]), st.integers(0, 999),
)  # fmt: skip
def test_writes_equal_their_definition(
    dtype: torch.dtype, held_as: torch.dtype, rows: int, groups: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        size = 10.0 ** torch.randint(-12, 5, (rows, groups, 1), generator=generator)
        x = torch.randn(rows, groups, width, generator=generator) * size
        strange = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e-31, -1e38])
        hit = torch.rand(x.shape, generator=generator) < 0.03
        x[hit] = strange[torch.randint(0, 6, (int(hit.sum()),), generator=generator)]
        return x.to(dtype)

    k, v = noise(), noise()
    slots = torch.randperm(12, generator=generator)[:rows]
    for isa in library.available():
        sides = []
        for chosen in (isa, "off"):
            with library.using(chosen):
                keys, values = (torch.zeros(4, 3, groups, width, dtype=held_as) for _ in range(2))
                scales = torch.zeros(2, 4, 3, groups) if held_as == torch.int8 else None
                torch.ops.vitrail.cache_write(k, v, keys, values, scales, slots)
                sides.append([keys, values, *([] if scales is None else [scales])])
        for ours, theirs in zip(*sides, strict=True):
            assert torch.equal(ours.isnan(), theirs.isnan())
            assert torch.equal(ours.float().nan_to_num(), theirs.float().nan_to_num())


def test_eight_bits_are_within_half_a_step() -> None:
    x = (
        torch.randn(50, 3, 64, generator=torch.Generator().manual_seed(0))
        * torch.logspace(-6, 6, 50)[:, None, None]
    )
    codes, scale = cpu_kv.round_rows(x)
    assert bool((codes.int().abs().amax(-1) == 127).all())
    step = x.abs().amax(-1) / 127
    assert bool(((codes * scale[..., None] - x).abs() <= 0.5001 * step[..., None]).all())


def test_rows_of_a_wider_tensor_are_read_where_they_lie() -> None:
    """q, k and v as views of one product, as a grouped projection may give them."""
    case = make([40], 4, 2, 16, torch.float32)
    joined = torch.cat([x.flatten(1) for x in (case.q[0], case.k[0], case.v[0])], dim=1)
    q, k, v = (x.reshape(40, -1, 16) for x in joined.split([64, 32, 32], dim=1))
    assert not q.is_contiguous()
    assert_same(Case([q], [k], [v], case.scale).fresh(), case.fresh())
    turned = Case([q.transpose(0, 1).contiguous().transpose(0, 1)], [k], [v], case.scale)
    assert_same(turned.fresh(), case.fresh())


# --- wrong calls, and what compilers of graphs ask for ---------------------------------------------------------


@pytest.mark.parametrize("wrong", ["table", "length", "offsets", "slot"])
def test_indices_outside_the_tensors(wrong: str) -> None:
    case = make([40], 2, 1, 8, torch.float32)
    held = Cache.empty(case, torch.float32, 32, 0)
    offsets, lengths = torch.tensor([0, 40]), torch.tensor([40])
    if wrong == "table":
        held.table[0, 1] = 99
    if wrong == "length":
        lengths = torch.tensor([65])
    if wrong == "offsets":
        offsets = torch.tensor([0, 41])
    if wrong == "slot":
        call = torch.ops.vitrail.cache_write
        arguments: tuple[object, ...] = (
            case.k[0], case.v[0], held.keys, held.values, None, torch.full((40,), 64)
        )  # fmt: skip
    else:
        call = torch.ops.vitrail.attention_cached
        arguments = (
            case.q[0], held.keys, held.values, None, held.table, offsets, lengths, 1.0, None
        )  # fmt: skip
    with pytest.raises(InputError, match="do not fit its tensors"):
        call(*arguments)


def test_the_operators_are_described_truly() -> None:
    """Schemas and fakes against what the operators do, as torch.compile relies on them."""
    case = make([9, 4], 4, 2, 8, torch.float32)
    held = Cache.empty(case, torch.int8, 4, 0)
    segments = Segments.new([9, 4])
    q, k, v = (torch.cat(x) for x in (case.q, case.k, case.v))
    slots = torch.cat([held.slots(0, 0, 9), held.slots(1, 0, 4)])
    tests = ("test_schema", "test_faketensor")
    ops = torch.ops.vitrail
    torch.library.opcheck(
        ops.cache_write.default, (k, v, held.keys, held.values, held.scales, slots), test_utils=tests
    )
    ends = (segments.cu_seqlens_q, segments.seq_lens_k)
    torch.library.opcheck(ops.attention.default, (q, k, v, *ends, True, 0.3, 5), test_utils=tests)
    torch.library.opcheck(
        ops.attention_cached.default,
        (q, held.keys, held.values, held.scales, held.table, *ends, 0.3, None),
        test_utils=tests,
    )


def test_a_cache_without_kernels_gives_what_the_definition_gives() -> None:
    case = make([9], 4, 2, 8, torch.float32)
    held = Cache.empty(case, torch.int8, 4, 0)
    with library.using("off"):
        found = case.cached(held, [(0, 9)])[0]
    kv = LayerKV(held.keys, held.values, held.scales)
    tables = BlockTables(held.table, (tuple(held.table[0].tolist()),))
    metadata = AttentionMetadata(Segments.new([9]), held.slots(0, 0, 9), tables)
    expected = reference_attention.attention_cached(case.q[0], metadata, scale=case.scale, kv=kv)
    assert torch.equal(found, expected)
    assert_near([found], walk(held.held(case)), torch.float32)
