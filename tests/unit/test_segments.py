"""Segments: offsets, lengths, runs of equal shape, masks with holes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies as st

from vitrail.errors import InputError
from vitrail.ops.segments import Segments

LENGTHS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


@given(LENGTHS)
def test_host_and_device_say_the_same(pairs: list[tuple[int, int]]) -> None:
    new, past = [n for n, _ in pairs], [p for _, p in pairs]
    segments = Segments.new(new, past)
    assert segments.cu_seqlens_q.dtype == segments.seq_lens_k.dtype == torch.int32
    assert tuple(segments.cu_seqlens_q.tolist()) == segments.q_host
    assert tuple(segments.seq_lens_k.tolist()) == segments.kv_host
    assert len(segments) == len(pairs)
    assert segments.rows == sum(new)
    assert [segments.query_length(i) for i in range(len(segments))] == new
    assert [segments.past_length(i) for i in range(len(segments))] == past


@given(LENGTHS)
def test_runs_cover_every_segment_once_in_order(pairs: list[tuple[int, int]]) -> None:
    segments = Segments.new([n for n, _ in pairs], [p for _, p in pairs])
    runs = segments.runs()
    assert [i for first, count in runs for i in range(first, first + count)] == list(range(len(pairs)))
    for first, count in runs:
        assert len({pairs[i] for i in range(first, first + count)}) == 1
    for (first, _), (second, _) in pairwise(runs):
        assert pairs[first] != pairs[second]


def test_images_see_all_of_themselves() -> None:
    segments = Segments.from_grids([(2, 3), (1, 1), (4, 2)])
    assert segments.q_host == (0, 6, 7, 15)
    assert segments.kv_host == (6, 1, 8)
    assert not segments.causal
    assert Segments.new([1]).causal


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4))
def test_masks_with_holes_leave_rows_out(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    segments, index = Segments.from_mask(mask.long())
    assert index.dtype == torch.int64
    assert index.tolist() == [i for i, kept in enumerate(mask.flatten().tolist()) if kept]
    assert [segments.query_length(i) for i in range(len(rows))] == [sum(row) for row in rows]


def test_a_mask_after_cached_rows() -> None:
    segments, _ = Segments.from_mask(torch.tensor([[0, 1], [1, 1]]), [4, 0])
    assert segments.kv_host == (5, 2)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 3, 3)])
def test_other_masks(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\(batch, positions\)"):
        Segments.from_mask(torch.ones(shape))
