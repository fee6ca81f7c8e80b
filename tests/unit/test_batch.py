"""build_batch for any mix of prompts' chunks and decoding rows; attention planned once per batch and device."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings, strategies as st

from tests import tiny
from vitrail.bench.random_model import random_model
from vitrail.errors import UnsupportedError
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import KVGeometry, Stream
from vitrail.model.fused import FusedBlocks
from vitrail.ops import backends
from vitrail.ops.batch import build_batch
from vitrail.ops.cpu import library
from vitrail.ops.reference import attention as reference_attention

SMALL = {
    "dim": 96, "n_layers": 2, "head_dim": 16, "hidden_dim": 160, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 128,
    "rope_theta": 1e6, "norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip
GEOMETRY = KVGeometry(((Stream("keys", 1, 2), Stream("values", 1, 2)),))


@given(
    past=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    new=st.lists(st.integers(0, 7), min_size=5, max_size=5),
    block=st.integers(1, 4),
)
def test_positions_slots_and_tables_of_any_mix(past: list[int], new: list[int], block: int) -> None:
    new = new[: len(past)]
    cache = KVCache.sized(GEOMETRY, [a + b for a, b in zip(past, new, strict=True)], block=block)
    sequences = [cache.open() for _ in past]
    for sequence, length in zip(sequences, past, strict=True):
        cache.allocate(sequence, length)
    batch = build_batch(new, cache=cache, sequences=sequences)
    expected, slots = [], []
    for sequence, old, rows in zip(sequences, past, new, strict=True):
        assert cache.length(sequence) == old + rows
        expected += range(old, old + rows)
        slots += [cache.blocks(sequence)[at // block] * block + at % block for at in range(old, old + rows)]
    assert batch.positions.tolist() == expected
    assert batch.slot_mapping is not None and batch.slot_mapping.tolist() == slots
    assert len(set(slots)) == len(slots)
    assert batch.block_tables is not None
    assert batch.block_tables.host == tuple(cache.blocks(sequence) for sequence in sequences)
    for row, blocks in zip(batch.block_tables.tensor.tolist(), batch.block_tables.host, strict=True):
        assert tuple(row[: len(blocks)]) == blocks and not any(row[len(blocks) :])
    assert batch.segments.kv_host == tuple(cache.length(sequence) for sequence in sequences)


def test_what_else_it_carries() -> None:
    adapters = torch.tensor([0, 0, 1])
    batch = build_batch(
        [2, 1], logits_indices=[1, 2], adapter_indices=adapters, positions=torch.tensor([4, 5, 0])
    )
    assert batch.logits_indices is not None and batch.logits_indices.tolist() == [1, 2]
    assert batch.adapter_indices is adapters
    assert batch.positions.tolist() == [4, 5, 0]
    assert (batch.slot_mapping, batch.block_tables, batch.sequences) == (None, None, ())


@pytest.mark.skipif(not library.available(), reason="no kernels were built")
@settings(max_examples=10, deadline=None)
@given(past=st.integers(1, 12), chunk=st.integers(1, 9))
def test_a_chunk_and_a_decoding_row_in_one_batch_equal_each_alone(past: int, chunk: int) -> None:
    """To the bit, with q4 weights."""
    model = random_model(SMALL, "q4")
    ids = torch.arange(past + chunk + 1) % 40 + 10

    def run(together: bool) -> torch.Tensor:
        cache = KVCache.sized(model.kv_geometry, [40, 40])
        one, two = cache.open(), cache.open()
        model.step(model.embed(ids[:past]), build_batch([past], cache=cache, sequences=[one]), cache)
        groups = [[(one, ids[past : past + 1]), (two, ids[:chunk])]]
        groups = groups if together else [[group] for group in groups[0]]
        found = []
        for group in groups:
            batch = build_batch([len(x) for _, x in group], cache=cache, sequences=[s for s, _ in group])
            found.append(model.step(model.embed(torch.cat([x for _, x in group])), batch, cache))
        return torch.cat(found)

    with torch.no_grad():
        assert torch.equal(run(True), run(False))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_attention_is_planned_once_for_all_layers(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = backends.REFERENCE if backend == "reference" else backends.BACKENDS["cpu"]
    planned, attended = [], []

    class Watched:
        def plan(self, *arguments: object) -> object:
            planned.append(chosen.plan(*arguments))
            return planned[-1]

        def attend(
            self, q: object, k: object, v: object, kv: object, metadata: object, **options: object
        ) -> object:
            attended.append(metadata)
            return chosen.attend(q, k, v, kv, metadata, **options)

    monkeypatch.setitem(backends.BACKENDS, "cpu", Watched())
    monkeypatch.setattr(FusedBlocks, "run", lambda *_: None)
    model = tiny.model("ministral3")
    cache = KVCache.sized(model.kv_geometry, [8, 8])
    sequences = [cache.open(), cache.open()]
    for lengths in ([4, 2], [1, 1]):
        batch = build_batch(lengths, cache=cache, sequences=sequences)
        model.step(model.embed(batch.positions + 20), batch, cache)
    layers = model.text_config.num_hidden_layers
    assert len(planned) == 2
    assert len(attended) == 2 * layers
    assert all(metadata is planned[n // layers] for n, metadata in enumerate(attended))


def test_storage_and_metadata_are_frozen() -> None:
    cache = KVCache.sized(GEOMETRY, [8])
    batch = build_batch([3], cache=cache, sequences=[cache.open()])
    assert not hasattr(cache.layer(0), "groups")
    for value, name in ((cache.layer(0), "keys"), (batch.attention, "segments"), (batch, "attention")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


@torch.no_grad()
def test_without_kernels_decoding_sequences_are_grouped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "library", lambda: None)
    grouped: list[object] = []
    groups_of = reference_attention._groups
    monkeypatch.setattr(reference_attention, "_groups", lambda *a: grouped.append(a) or groups_of(*a))
    model = tiny.model("ministral3")
    cache = KVCache.sized(model.kv_geometry, [8, 8])
    sequences = [cache.open(), cache.open()]
    for lengths in ([4, 2], [1, 1]):
        batch = build_batch(lengths, cache=cache, sequences=sequences)
        model.step(model.embed(batch.positions + 20), batch, cache)
    assert model.text_config.num_hidden_layers > 1
    assert len(grouped) == 1


@torch.no_grad()
def test_a_model_refuses_an_adapter_per_row() -> None:
    model = tiny.model("ministral3")
    batch = build_batch([2], adapter_indices=torch.tensor([0, 1]))
    with pytest.raises(UnsupportedError, match="set_adapter"):
        model.step(model.embed(batch.positions + 20), batch, None)
