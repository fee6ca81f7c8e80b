"""attention() against a dense float64 softmax: fresh rows, one row after a cache, tiles, windows, gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.attention import AttentionPlan
from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.kv import BlockTables, LayerKV
from vitrail.ops.reference import attention as module
from vitrail.ops.segments import Segments

BLOCK = 4


@dataclass(frozen=True)
class Held:
    """A cache of one layer, with the slots of the new rows."""

    kv: LayerKV
    slots: Tensor
    tables: BlockTables

    def layer(self, index: int, device: torch.device | None = None) -> LayerKV:
        return self.kv

    def to(self, dtype: torch.dtype) -> Held:
        return replace(self, kv=LayerKV(self.kv.keys.to(dtype), self.kv.values.to(dtype)))


@dataclass
class Problem:
    """Whole sequences q, k, v, of which the last `new` rows are queried; the rest lies in a cache."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    past: list[int]
    causal: bool = True
    window: int | None = None

    @property
    def scale(self) -> float:
        return 0.7 / self.q[0].shape[2] ** 0.5

    def new(self, rows: list[Tensor]) -> Tensor:
        """The packed new rows of every sequence."""
        return torch.cat([x[old:] for x, old in zip(rows, self.past, strict=True)])

    @property
    def segments(self) -> Segments:
        lengths = [len(x) - old for x, old in zip(self.q, self.past, strict=True)]
        return Segments.new(lengths, self.past, causal=self.causal)

    def cache(self, shuffle: int | None = None) -> Held:
        """A cache with the old rows in blocks, in order or scattered; what nobody wrote is NaN."""
        counts = [-(-len(x) // BLOCK) for x in self.k]
        order = list(range(sum(counts)))
        if shuffle is not None:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(shuffle)).tolist()
        tables, slots = [], []
        for count, x, old in zip(counts, self.k, self.past, strict=True):
            tables.append(tuple(order[:count]))
            del order[:count]
            slots += [tables[-1][at // BLOCK] * BLOCK + at % BLOCK for at in range(old, len(x))]
        shape = (sum(counts), BLOCK, *self.k[0].shape[1:])
        keys, values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        for table, k, v, old in zip(tables, self.k, self.v, self.past, strict=True):
            for at in range(old):
                keys[table[at // BLOCK], at % BLOCK] = k[at]
                values[table[at // BLOCK], at % BLOCK] = v[at]
        padded = [list(t) + [0] * (max(counts) - len(t)) for t in tables]
        host = BlockTables(torch.tensor(padded, dtype=torch.int32), tuple(tables))
        return Held(LayerKV(keys, values), torch.tensor(slots, dtype=torch.int64), host)

    def weights(self) -> list[Tensor]:
        """The oracle's softmax per sequence, (A, T, S) float64, the queries' rows only."""
        found = []
        for q, k, old in zip(self.q, self.k, self.past, strict=True):
            heads = q.shape[1] // k.shape[1]
            scores = (
                torch.einsum("tak,sak->ats", q.double(), k.double().repeat_interleave(heads, 1)) * self.scale
            )
            row, key = torch.arange(len(q))[:, None], torch.arange(len(k))[None]
            hidden = torch.zeros(len(q), len(k), dtype=torch.bool)
            if self.causal:
                hidden = key > row
                if self.window is not None:
                    hidden |= key <= row - self.window
            found.append(scores.masked_fill(hidden, -torch.inf).softmax(-1)[:, old:])
        return found

    def expected(self) -> Tensor:
        """The oracle's output (L, A, K), float64."""
        rows = []
        for weights, q, v in zip(self.weights(), self.q, self.v, strict=True):
            wide = v.double().repeat_interleave(q.shape[1] // v.shape[1], 1)
            rows.append(torch.einsum("ats,sak->tak", weights, wide))
        return torch.cat(rows)


def problem(
    lengths: list[int],
    past: list[int] | None = None,
    *,
    heads: int = 4,
    groups: int = 2,
    width: int = 6,
    causal: bool = True,
    window: int | None = None,
    seed: int = 0,
) -> Problem:
    """Sequences of `past` + `lengths` rows of noise."""
    generator = torch.Generator().manual_seed(seed)
    old = [0] * len(lengths) if past is None else past
    totals = [n + p for n, p in zip(lengths, old, strict=True)]

    def noise(number: int) -> list[Tensor]:
        return [2 * torch.randn(total, number, width, generator=generator) for total in totals]

    return Problem(noise(heads), noise(groups), noise(groups), old, causal, window)


def plan_of(segments: Segments, held: Held | None) -> AttentionPlan:
    if held is None:
        return AttentionPlan(AttentionMetadata(segments))
    return AttentionPlan(AttentionMetadata(segments, held.slots, held.tables), held)


def run(p: Problem, held: Held | None = None) -> Tensor:
    plan = plan_of(p.segments, held)
    return plan.attend(p.new(p.q), p.new(p.k), p.new(p.v), scale=p.scale, window=p.window)


def assert_near(found: Tensor, expected: Tensor, bound: float = 2e-6) -> None:
    assert found.shape == expected.shape
    assert float((found.double() - expected).abs().max()) <= bound * float(expected.abs().max())


@st.composite
def problems(draw: st.DrawFn) -> tuple[Problem, int | None]:
    count = draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, 2, 3]))
    lengths = draw(st.lists(st.integers(1, 13), min_size=count, max_size=count))
    past = draw(st.lists(st.integers(0, 19), min_size=count, max_size=count))
    made = problem(
        lengths,
        past,
        heads=groups * draw(st.sampled_from([1, 2, 3])),
        groups=groups,
        width=draw(st.sampled_from([1, 2, 5, 8])),
        window=draw(st.none() | st.integers(1, 24)),
        seed=draw(st.integers(0, 1000)),
    )
    return made, draw(st.none() | st.integers(0, 5))


@pytest.mark.parametrize("tile", [1, 3, 8, 1024])
@settings(max_examples=60, deadline=None)
@given(drawn=problems())
def test_ragged_segments_after_caches_of_any_length(tile: int, drawn: tuple[Problem, int | None]) -> None:
    made, shuffle = drawn
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "TILE", tile)
        assert_near(run(made, made.cache(shuffle)), made.expected())


@settings(max_examples=40, deadline=None)
@given(drawn=problems())
def test_the_shown_weights_are_the_ones_applied(drawn: tuple[Problem, int | None]) -> None:
    made, shuffle = drawn
    held = made.cache(shuffle)
    held.kv.write(made.new(made.k), made.new(made.v), held.slots)
    plan = plan_of(made.segments, held)
    found = plan.weights(made.new(made.q), made.new(made.k), scale=made.scale, window=made.window)
    for ours, expected in zip(found, made.weights(), strict=True):
        assert_near(ours, expected, 1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.sampled_from([2, 4, 88]), st.integers(0, 99))
def test_images_see_all_of_themselves_and_nothing_else(lengths: list[int], width: int, seed: int) -> None:
    made = problem(lengths, heads=3, groups=3, width=width, causal=False, seed=seed)
    found = run(made)
    assert_near(found, made.expected())
    start = 0
    for index, length in enumerate(lengths):
        alone = Problem([made.q[index]], [made.k[index]], [made.v[index]], [0], causal=False)
        torch.testing.assert_close(found[start : start + length], run(alone), rtol=0, atol=1e-6)
        start += length


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("new", [1, 2, 9])
def test_the_three_ways_agree(new: int, window: int | None) -> None:
    """The last rows of one sequence: all keys new, after a cache, and after a cache row by row."""
    whole = problem([20], window=window)
    fresh = run(whole)[-new:]
    chunk = Problem(whole.q, whole.k, whole.v, [20 - new], window=window)
    with torch.no_grad():
        torch.testing.assert_close(run(chunk, chunk.cache()), fresh, rtol=0, atol=2e-6)
        for back in range(new):
            upto = 20 - back
            row = Problem(
                [whole.q[0][:upto]], [whole.k[0][:upto]], [whole.v[0][:upto]], [upto - 1], window=window
            )
            torch.testing.assert_close(
                run(row, row.cache(3)), fresh[new - 1 - back : new - back], rtol=0, atol=2e-6
            )


@pytest.mark.parametrize("splits", [[7], [1, 2], [3, 4, 12], list(range(1, 20))])
def test_in_chunks_equals_whole(splits: list[int]) -> None:
    whole = problem([20, 11])
    expected = whole.expected()
    found: list[list[Tensor]] = [[], []]
    held = Problem(whole.q, whole.k, whole.v, [0, 0]).cache(1)
    cuts = [0, *splits, 20]
    with torch.no_grad():
        for start, stop in pairwise(cuts):
            now = [[x[: min(stop, len(x))] for x in rows] for rows in (whole.q, whole.k, whole.v)]
            chunk = Problem(*now, [min(start, len(x)) for x in whole.q])
            slots = [
                held.tables.host[i][at // BLOCK] * BLOCK + at % BLOCK
                for i, x in enumerate(chunk.q)
                for at in range(chunk.past[i], len(x))
            ]
            here = replace(held, slots=torch.tensor(slots))
            rows = run(chunk, here).split([len(x) - p for x, p in zip(chunk.q, chunk.past, strict=True)])
            for index, piece in enumerate(rows):
                found[index].append(piece)
    assert_near(torch.cat([torch.cat(pieces) for pieces in found]), expected)


@pytest.mark.parametrize(
    ("lengths", "past", "window"),
    [([5, 5, 3], [0, 0, 0], None), ([5, 5, 3], [0, 0, 0], 2), ([4, 1], [6, 9], None), ([4, 1], [6, 9], 3)],
)
def test_gradients(lengths: list[int], past: list[int], window: int | None) -> None:
    """Of the new rows; rows that lie in a cache are constants."""
    made = problem(lengths, past, window=window)
    factor = torch.randn(sum(lengths), 4, 6, generator=torch.Generator().manual_seed(5))
    ours = [made.new(x).requires_grad_(True) for x in (made.q, made.k, made.v)]
    cached = None if not any(past) else made.cache()
    out = plan_of(made.segments, cached).attend(*ours, scale=made.scale, window=window)
    (out * factor).sum().backward()
    leaves = [[x.clone().requires_grad_(True) for x in rows] for rows in (made.q, made.k, made.v)]
    (Problem(*leaves, past, window=window).expected() * factor).sum().backward()
    for found, rows in zip(ours, leaves, strict=True):
        expected = torch.cat([x.grad[old:] for x, old in zip(rows, past, strict=True)])
        assert_near(found.grad, expected, 5e-6)


@pytest.mark.parametrize("past", [0, 3])
def test_gradients_of_float64_are_exact(past: int) -> None:
    made = problem([3], [past], heads=2, groups=1, width=2)
    held = made.cache().to(torch.float64) if past else None
    leaves = [made.new(x).double().requires_grad_(True) for x in (made.q, made.k, made.v)]

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plan_of(made.segments, held).attend(q, k, v, scale=0.5)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("past", [0, 6])
def test_half_precision_accumulates_in_float32(dtype: torch.dtype, past: int) -> None:
    made = problem([7, 1], [past, past])
    made = Problem(*([x.to(dtype) for x in rows] for rows in (made.q, made.k, made.v)), made.past)
    with torch.no_grad():
        found = run(made, made.cache().to(dtype) if past else None)
    assert found.dtype == dtype
    assert_near(found, made.expected(), 4 * torch.finfo(dtype).eps)


def test_queries_are_taken_in_parts_where_scores_would_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCORES", 1)  # 64 queries at a time
    made = problem([150], [70])
    with torch.no_grad():
        assert_near(run(made, made.cache()), made.expected())


def test_scores_far_from_zero_stay_finite() -> None:
    made = problem([6], [5])
    made.q = [1e4 * x for x in made.q]
    with torch.no_grad():
        found = run(made, made.cache())
    assert bool(found.isfinite().all())
    assert_near(found, made.expected(), 1e-3)


def test_sequences_without_new_rows_are_passed_over() -> None:
    made = problem([3, 2], [4, 0])
    between = Segments.new([3, 0, 2], [4, 5, 0])
    held = made.cache()
    first, last = held.tables.host
    held = replace(held, tables=BlockTables(held.tables.tensor[[0, 0, 1]], (first, (), last)))
    with torch.no_grad():
        found = plan_of(between, held).attend(
            made.new(made.q), made.new(made.k), made.new(made.v), scale=made.scale
        )
    assert_near(found, made.expected())


def test_nothing_at_all_gives_nothing() -> None:
    empty = torch.empty(0, 4, 6)
    found = plan_of(Segments.new([0]), None).attend(empty, empty[:, :2], empty[:, :2], scale=1.0)
    assert found.shape == (0, 4, 6)


def test_cached_keys_without_a_cache() -> None:
    made = problem([2], [3])
    with pytest.raises(InputError, match="3 cached keys"):
        run(made)
    with pytest.raises(InputError, match="3 cached keys"):
        plan_of(made.segments, None)
