"""Attention of decoding: many sequences at once against each alone; rows never depend on others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vitrail.ops.backend import AttentionMetadata
from vitrail.ops.kv import BlockTables, LayerKV
from vitrail.ops.reference import attention as module
from vitrail.ops.reference.attention import DecodePlan, Group, _decode_row as decode_row
from vitrail.ops.segments import Segments

BLOCK, HEADS, GROUPS, WIDTH = 4, 6, 2, 8
TOTALS = (1, 4, 5, 7, 8, 8, 3, 30, 29, 2, 6)


def cache(totals: tuple[int, ...], seed: int = 0) -> tuple[LayerKV, BlockTables]:
    """A cache of noise in scattered blocks; positions that no sequence has are NaN."""
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-total // BLOCK) + row % 2 for row, total in enumerate(totals)]  # some have a block to spare
    order = torch.randperm(sum(counts), generator=generator).tolist()
    stored = [torch.full((len(order), BLOCK, GROUPS, WIDTH), torch.nan) for _ in range(2)]
    tables: list[tuple[int, ...]] = []
    for total, count in zip(totals, counts, strict=True):
        tables.append(tuple(order[:count]))
        del order[:count]
        for at in range(total):
            for x in stored:
                x[tables[-1][at // BLOCK], at % BLOCK] = torch.randn(GROUPS, WIDTH, generator=generator)
    table = torch.tensor([list(t) + [0] * (max(counts) - len(t)) for t in tables], dtype=torch.int32)
    return LayerKV(stored[0], stored[1]), BlockTables(table, tuple(tables))


def planned(totals: tuple[int, ...], kv: LayerKV, tables: BlockTables) -> DecodePlan:
    segments = Segments.new([1] * len(totals), [total - 1 for total in totals])
    with torch.no_grad():
        plan = module.plan(AttentionMetadata(segments, None, tables), kv, torch.float32)
    assert isinstance(plan, DecodePlan)
    return plan


def decode_rows(q: Tensor, totals: tuple[int, ...], kv: LayerKV, tables: BlockTables) -> Tensor:
    with torch.no_grad():
        return module.attention_cached(q, planned(totals, kv, tables), scale=0.3, kv=kv)


def queries(seed: int = 1) -> Tensor:
    return torch.randn(len(TOTALS), HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("copied", [0, 8 * BLOCK * GROUPS * WIDTH, module.COPIED])
def test_together_equals_one_by_one(copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED", copied)
    (kv, tables), q = cache(TOTALS), queries()
    plan = planned(TOTALS, kv, tables)
    alone = torch.cat([decode_row(q[n : n + 1], n, plan, 0.3, kv) for n in range(len(TOTALS))])
    assert torch.allclose(decode_rows(q, TOTALS, kv, tables), alone, rtol=1e-5, atol=1e-6)
    copies = [group for group in plan.groups if isinstance(group, Group)]
    assert bool(copies) == (copied > 0)
    assert all(len(g.blocks) * BLOCK * GROUPS * WIDTH <= copied for g in copies)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_row_has_the_same_bits_whoever_is_beside_it() -> None:
    """With several threads PyTorch cuts a batch by its size; the kernels' rows are the same with any number."""
    (kv, tables), q = cache(TOTALS), queries()
    whole = decode_rows(q, TOTALS, kv, tables)
    chosen = [0, 3, 4, 8, 10]
    part = BlockTables(tables.tensor[chosen], tuple(tables.host[n] for n in chosen))
    found = decode_rows(q[chosen], tuple(TOTALS[n] for n in chosen), kv, part)
    assert torch.equal(found, whole[chosen])


def test_a_sequence_that_is_not_a_number_spoils_no_other() -> None:
    (kv, tables), q = cache(TOTALS), queries()
    clean = decode_rows(q, TOTALS, kv, tables)
    kv.values[tables.host[4][0], 0] = torch.nan
    found = decode_rows(q, TOTALS, kv, tables)
    assert found[4].isnan().any()
    others = [n for n in range(len(TOTALS)) if n != 4]
    assert torch.equal(found[others], clean[others])
