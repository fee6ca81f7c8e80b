"""KVCache against plain lists: opening, lengthening, truncating, forking, sharing, closing, growing; and its HF view."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from vitrail.bench.geometries import config_of, params_of
from vitrail.configs import MistralConfig
from vitrail.errors import CacheFull, InputError, UnsupportedError
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import head_bytes
from vitrail.ops.batch import build_batch

LAYERS, GROUPS, WIDTH = 2, 2, 3
CONFIG = MistralConfig(
    hidden_size=12, num_attention_heads=4, num_key_value_heads=GROUPS, head_dim=WIDTH + 1, num_hidden_layers=LAYERS,
    intermediate_size=8, vocab_size=16,
)  # fmt: skip
HEAD = CONFIG.head_dim


def numbered(first: int, rows: int, layer: int) -> Tensor:
    """(rows, G, K) whose every element tells row and layer."""
    numbers = torch.arange(first, first + rows, dtype=torch.float32) + layer / 10
    return numbers[:, None, None].expand(rows, GROUPS, HEAD)


def write(cache: KVCache, sequences: list[int], rows: list[int], first: int) -> None:
    """One batch: numbered rows of all layers; values are the negated keys."""
    batch = build_batch(rows, cache=cache, sequences=sequences)
    for layer in range(LAYERS):
        k = numbered(first, batch.segments.rows, layer)
        cache.layer(layer).write(k, -k, batch.slot_mapping)


def read(cache: KVCache, sequence: int, layer: int = 0) -> list[float]:
    """The first element of each of a sequence's keys, as a later step sees them."""
    length = cache.length(sequence)
    tables = build_batch([0], cache=cache, sequences=[sequence]).block_tables
    keys, values = cache.layer(layer).read(tables, 0, 0, length)
    assert keys.shape == (length, GROUPS, HEAD)
    assert torch.equal(keys, -values)
    assert bool((keys == keys[:, :1, :1]).all())
    return [round(float(x) - layer / 10, 3) for x in keys[:, 0, 0]]


@dataclass
class Model:
    """What the cache should hold: a list of numbers per open sequence."""

    sequences: dict[int, list[float]] = field(default_factory=dict)
    next_number: int = 1


class Comparison(RuleBasedStateMachine):
    """Random calls on a cache of few small blocks and on plain lists."""

    @initialize(
        blocks=st.integers(1, 8),
        block=st.sampled_from([1, 2, 4]),
        dtype=st.sampled_from([torch.float32, torch.int8]),
    )
    def begin(self, blocks: int, block: int, dtype: torch.dtype) -> None:
        self.block = block
        self.cache = KVCache(CONFIG, blocks=blocks, block=block, dtype=dtype)
        self.model = Model()

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model.sequences)))

    @rule(room=st.integers(0, 9))
    def open(self, room: int) -> None:
        before = self.state()
        try:
            sequence = self.cache.open(room=room)
        except CacheFull:
            assert self.state() == before
            assert self.cache.free_blocks * self.block < room
            return
        assert sequence not in self.model.sequences
        self.model.sequences[sequence] = []

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), positions=st.integers(0, 12), room=st.integers(0, 9))
    def share(self, data: st.DataObject, positions: int, room: int) -> None:
        source = self.pick(data)
        before = self.state()
        try:
            sequence = self.cache.open((source, positions), room=room)
        except CacheFull:
            assert self.state() == before
            return
        full = min(positions, len(self.model.sequences[source])) // self.block * self.block
        self.model.sequences[sequence] = self.model.sequences[source][:full]

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), room=st.integers(0, 9))
    def fork(self, data: st.DataObject, room: int) -> None:
        source = self.pick(data)
        before = self.state()
        try:
            sequence = self.cache.fork(source, room=room)
        except CacheFull:
            assert self.state() == before
            return
        self.model.sequences[sequence] = list(self.model.sequences[source])

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data(), rows=st.integers(0, 7))
    def lengthen(self, data: st.DataObject, rows: int) -> None:
        sequence = self.pick(data)
        before = self.state()
        try:
            write(self.cache, [sequence], [rows], self.model.next_number)
        except CacheFull:
            assert self.state() == before
            return
        new = range(self.model.next_number, self.model.next_number + rows)
        self.model.sequences[sequence] += map(float, new)
        self.model.next_number += rows

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        length = data.draw(st.integers(0, len(self.model.sequences[sequence])))
        self.cache.truncate(sequence, length)
        del self.model.sequences[sequence][length:]

    @precondition(lambda self: self.model.sequences)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.cache.free(sequence)
        del self.model.sequences[sequence]
        with pytest.raises(InputError, match="not open"):
            self.cache.length(sequence)

    @rule(blocks=st.integers(1, 3))
    def grow(self, blocks: int) -> None:
        free = self.cache.free_blocks
        self.cache.grow(blocks)
        assert self.cache.free_blocks == free + blocks

    def state(self) -> tuple[object, ...]:
        contents = {s: [read(self.cache, s, layer) for layer in range(LAYERS)] for s in self.cache.sequences}
        return contents, self.cache.free_blocks

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert self.cache.sequences == tuple(self.model.sequences)
        for sequence, expected in self.model.sequences.items():
            for layer in range(LAYERS):
                assert read(self.cache, sequence, layer) == expected

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        total = len(self.cache.allocator)
        for sequence in self.cache.sequences:
            self.cache.free(sequence)
        assert self.cache.free_blocks == total


TestAgainstLists = pytest.mark.slow(Comparison.TestCase)
TestAgainstLists.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_a_prefix_takes_no_block_and_a_fork_only_the_partial_one() -> None:
    cache = KVCache(CONFIG, blocks=8, block=4)
    source = cache.open()
    write(cache, [source], [10], 1)
    assert cache.free_blocks == 5
    prefix = cache.open((source, 9))
    assert (cache.length(prefix), cache.free_blocks) == (8, 5)
    clone = cache.fork(source)
    assert (cache.length(clone), cache.free_blocks) == (10, 4)
    cache.free(source)
    assert cache.free_blocks == 5  # the two full blocks are still read by two sequences
    assert read(cache, clone) == [float(i) for i in range(1, 11)]


def test_writing_into_a_shared_block_copies_it_first() -> None:
    """Sharing, then truncating inside a shared block, then writing: the other sequence keeps its rows."""
    cache = KVCache(CONFIG, blocks=4, block=4)
    source = cache.open()
    write(cache, [source], [8], 1)
    other = cache.open((source, 8))
    cache.truncate(other, 5)
    write(cache, [other], [2], 50)
    assert read(cache, source) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert read(cache, other) == [1, 2, 3, 4, 5, 50, 51]
    cache.truncate(source, 2)
    write(cache, [source], [1], 90)
    assert read(cache, other)[:4] == [1, 2, 3, 4]


def test_blocks_set_aside_are_neighbours_and_reading_them_copies_nothing() -> None:
    cache = KVCache(CONFIG, blocks=6, block=4)
    first, second = cache.open(room=12), cache.open(room=12)
    write(cache, [first, second], [9, 5], 1)
    tables = build_batch([0, 0], cache=cache, sequences=[first, second]).block_tables
    kv = cache.layer(0)
    storage = kv.keys.untyped_storage().data_ptr()
    assert kv.read(tables, 0, 0, 9)[0].untyped_storage().data_ptr() == storage
    assert kv.read(tables, 1, 2, 5)[1].untyped_storage().data_ptr() == kv.values.untyped_storage().data_ptr()


def test_a_batch_that_does_not_fit_the_cache_lengthens_no_sequence() -> None:
    cache = KVCache(CONFIG, blocks=2, block=4)
    first, second = cache.open(), cache.open()
    with pytest.raises(CacheFull, match="2 more blocks of 4 positions and has 1 free"):
        build_batch([3, 5], cache=cache, sequences=[first, second])
    assert (cache.length(first), cache.length(second), cache.free_blocks) == (0, 0, 2)


def test_wrong_calls() -> None:
    cache = KVCache(CONFIG, blocks=2, block=4)
    sequence = cache.open()
    with pytest.raises(CacheFull, match="3 more blocks of 4 positions and has 2 free"):
        cache.allocate(sequence, 12)
    assert (cache.length(sequence), cache.free_blocks) == (0, 2)
    with pytest.raises(InputError, match="truncate a sequence of 0 positions to 1"):
        cache.truncate(sequence, 1)
    with pytest.raises(InputError, match="-1 rows"):
        cache.allocate(sequence, -1)
    with pytest.raises(InputError, match="-4 positions"):
        cache.open((sequence, -4))
    with pytest.raises(InputError, match="sequence 7 is not open"):
        cache.free(7)
    with pytest.raises(UnsupportedError, match=r"torch\.int32 is not supported.*int8"):
        KVCache(CONFIG, blocks=1, dtype=torch.int32)


# --- 8 bits ----------------------------------------------------------------------------------------------------


def test_eight_bits_survive_forks_growth_and_truncation() -> None:
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(9, GROUPS, HEAD, generator=generator) for _ in range(2))
    cache = KVCache(CONFIG, blocks=3, block=4, dtype=torch.int8)
    source = cache.open()
    slots = torch.tensor(cache.allocate(source, 9))
    for layer in range(LAYERS):
        cache.layer(layer).write(k, v, slots)
    near = {"rtol": 0, "atol": float(max(k.abs().max(), v.abs().max())) / 253}
    before = cache[1]
    assert before[0].dtype == torch.float32
    torch.testing.assert_close(before[0][0].transpose(0, 1), k, **near)
    cache.grow(4)
    clone = cache.fork(source)
    cache.truncate(source, 6)
    tables = build_batch([0, 0], cache=cache, sequences=[source, clone]).block_tables
    kv = cache.layer(1)
    for found, expected in zip(kv.read(tables, 1, 0, 9), before, strict=True):
        assert torch.equal(found, expected[0].transpose(0, 1))
    assert torch.equal(kv.read(tables, 0, 2, 6)[1], before[1][0].transpose(0, 1)[2:6])
    legacy = cache.to_legacy_cache()
    again = KVCache.from_legacy(legacy, CONFIG, cache.kept(), dtype=torch.int8)
    assert again.dtype == torch.int8
    for ours, theirs in zip(again.to_legacy_cache(), legacy, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7)


def test_128k_positions_of_the_12b_geometry_fit_in_ten_and_a_half_gib() -> None:
    """8 bits with their scales; a real cache of a thousandth of it takes what is computed."""
    config = config_of(params_of("pixtral-12b")).get_text_config()
    heads = 2 * config.num_hidden_layers * config.num_key_value_heads
    whole = 131_072 * heads * head_bytes(config.head_dim, torch.int8)
    assert whole <= 10.5 * 2**30
    cache = KVCache.sized(config, [128], dtype=torch.int8)
    assert cache.nbytes * 1024 == whole
    assert KVCache.sized(config, [128], dtype=torch.bfloat16).nbytes == 128 * heads * 2 * config.head_dim


# --- Hugging Face's view ---------------------------------------------------------------------------------------


def test_the_view_is_left_padded_where_no_mask_is_known() -> None:
    cache = KVCache.sized(CONFIG, [5, 3], block=2)
    rows = [cache.open(room=5), cache.open(room=3)]
    write(cache, rows, [5, 3], 1)
    assert len(cache) == LAYERS
    assert cache.get_seq_length() == 5
    key, value = cache[1]
    assert key.shape == value.shape == (2, GROUPS, 5, HEAD)
    expected = [[1.1, 2.1, 3.1, 4.1, 5.1], [0, 0, 6.1, 7.1, 8.1]]
    torch.testing.assert_close(key[:, 1, :, 2], torch.tensor(expected))
    torch.testing.assert_close(value, -key)
    assert [k.shape for k, _ in cache] == [key.shape] * LAYERS
    with pytest.raises(IndexError):
        cache[LAYERS]


def test_the_view_follows_the_mask_that_forward_was_given() -> None:
    cache = KVCache.sized(CONFIG, [2, 4], block=2)
    write(cache, [cache.open(), cache.open()], [2, 4], 1)
    cache.mask = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    assert cache[0][0][:, 0, :, 0].tolist() == [[1, 0, 2, 0], [3, 4, 5, 6]]
    assert cache.get_seq_length() == 4


def test_a_sequence_without_rows_is_all_padding() -> None:
    cache = KVCache.sized(CONFIG, [2, 0], block=2)
    first = cache.open()
    cache.open()
    write(cache, [first], [2], 1)
    assert cache[0][0][:, 0, :, 0].tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(
    "mask", [None, [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], [[1, 1, 0, 0, 0], [1, 0, 1, 1, 0]]]
)
def test_round_trip_through_tuples(mask: list[list[int]] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    kept = torch.ones(2, 5, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    past = []
    for _ in range(LAYERS):
        pair = [
            torch.randn(2, GROUPS, 5, HEAD, generator=generator) * kept[:, None, :, None] for _ in range(2)
        ]
        past.append((pair[0], pair[1]))
    cache = KVCache.from_legacy(past, CONFIG, None if mask is None else torch.tensor(mask))
    assert [cache.length(s) for s in cache.sequences] == kept.sum(1).tolist()
    for found, expected in zip(cache.to_legacy_cache(), past, strict=True):
        for mine, given in zip(found, expected, strict=True):
            assert torch.equal(mine, given)


@pytest.mark.parametrize(
    ("past", "mask", "message"),
    [
        ([], None, "0 layers, the model 2"),
        ([(torch.zeros(1, GROUPS, 3, HEAD),) * 2] * 3, None, "3 layers, the model 2"),
        ([(torch.zeros(1, GROUPS, 3, HEAD),)] * 2, None, "key, value"),
        ([(torch.zeros(1, GROUPS, 3, 1),) * 2] * 2, None, r"\(1, 2, 3, 1\), expected \(1, 2, 3, 4\)"),
        ([(torch.zeros(3),) * 2] * 2, None, r"shape \(3,\)"),
        ([(torch.zeros(1, GROUPS, 3, HEAD), torch.zeros(1, GROUPS, 4, HEAD))] * 2, None, "expected"),
        ([("keys", "values")] * 2, None, "key, value"),
        ([(torch.zeros(1, GROUPS, 3, HEAD),) * 2] * 2, torch.ones(1, 4), r"mask .*\(1, 4\).*\(1, 3\)"),
    ],
)
def test_tuples_that_do_not_fit(past: list, mask: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        KVCache.from_legacy(past, CONFIG, mask)


def test_scales_are_float32_whatever_the_default_type_is() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        cache = KVCache(CONFIG, blocks=3, block=4, dtype=torch.int8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert cache._layers[0].scales is not None
    assert cache._layers[0].scales.dtype == torch.float32
