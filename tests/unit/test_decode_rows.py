"""Attention of decoding: many sequences at once against each alone; rows never depend on others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from vitrail.ops.kv import Group, LayerKV
from vitrail.ops.reference import attention as module
from vitrail.ops.reference.attention import _decode_row as decode_row, _decode_rows as decode_rows

BLOCK, HEADS, GROUPS, WIDTH = 4, 6, 2, 8
TOTALS = (1, 4, 5, 7, 8, 8, 3, 30, 29, 2, 6)


def cache(totals: tuple[int, ...], seed: int = 0) -> LayerKV:
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
    return LayerKV(stored[0], stored[1], torch.empty(0, dtype=torch.int64), table, tuple(tables))


def queries(seed: int = 1) -> Tensor:
    return torch.randn(len(TOTALS), HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("copied", [0, 8 * BLOCK * GROUPS * WIDTH, module.COPIED])
def test_together_equals_one_by_one(copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIED", copied)
    kv, q = cache(TOTALS), queries()
    alone = torch.cat([decode_row(q[n : n + 1], n, total, 0.3, kv) for n, total in enumerate(TOTALS)])
    assert torch.allclose(decode_rows(q, TOTALS, 0.3, kv), alone, rtol=1e-5, atol=1e-6)
    copies = [group for group in kv.groups if isinstance(group, Group)]
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
    kv, q = cache(TOTALS), queries()
    whole = decode_rows(q, TOTALS, 0.3, kv)
    chosen = [0, 3, 4, 8, 10]
    table, tables = kv.block_table[chosen], tuple(kv.tables[n] for n in chosen)
    part = LayerKV(kv.keys, kv.values, kv.slots, table, tables)
    found = decode_rows(q[chosen], tuple(TOTALS[n] for n in chosen), 0.3, part)
    assert torch.equal(found, whole[chosen])


def test_a_sequence_that_is_not_a_number_spoils_no_other() -> None:
    kv, q = cache(TOTALS), queries()
    clean = decode_rows(q, TOTALS, 0.3, kv)
    kv.values[kv.tables[4][0], 0] = torch.nan
    found = decode_rows(q, TOTALS, 0.3, kv)
    assert found[4].isnan().any()
    others = [n for n in range(len(TOTALS)) if n != 4]
    assert torch.equal(found[others], clean[others])
