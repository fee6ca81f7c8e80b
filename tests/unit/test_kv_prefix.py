"""Keys of cached blocks: equal exactly where the contents are; and sequences that share what is cached."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, strategies as st

from vitrail.images.fingerprint import fingerprint
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import KVGeometry, Stream
from vitrail.kv.prefix import ImageSpan, PrefixScope, block_keys
from vitrail.ops.batch import build_batch

SCOPE = PrefixScope("0.1.0", "weights", "", "bfloat16", "bfloat16", "v7")
GEOMETRY = KVGeometry(((Stream("keys", 2, 4), Stream("values", 2, 4)),) * 2)


@given(
    one=st.lists(st.integers(0, 2), max_size=12),
    two=st.lists(st.integers(0, 2), max_size=12),
    block=st.integers(1, 4),
)
def test_keys_agree_as_far_as_the_ids_do(one: list[int], two: list[int], block: int) -> None:
    first, second = block_keys(SCOPE, one, block=block), block_keys(SCOPE, two, block=block)
    assert (len(first), len(second)) == (len(one) // block, len(two) // block)
    common = 0
    while common < min(len(one), len(two)) and one[common] == two[common]:
        common += 1
    for number, (mine, other) in enumerate(zip(first, second, strict=False)):
        assert (mine == other) == ((number + 1) * block <= common)


@pytest.mark.parametrize("name", [field.name for field in fields(PrefixScope)])
def test_every_part_of_the_scope_counts(name: str) -> None:
    ids = list(range(8))
    other = replace(SCOPE, **{name: "another"})
    assert not set(block_keys(SCOPE, ids, block=4)) & set(block_keys(other, ids, block=4))


def test_neighbouring_fields_cannot_be_confused() -> None:
    one, two = replace(SCOPE, weights="ab", adapter="c"), replace(SCOPE, weights="a", adapter="bc")
    assert block_keys(one, [1], block=1) != block_keys(two, [1], block=1)


def test_an_image_counts_by_its_prepared_pixels_and_its_grid_from_where_it_begins() -> None:
    pixels = torch.arange(12.0).reshape(3, 2, 2)
    ids = [1, 1, 9, 9, 9, 9, 1, 1]
    image = ImageSpan(2, 6, fingerprint(pixels), (2, 2))
    same = ImageSpan(2, 6, fingerprint(pixels.clone()), (2, 2))
    others = [
        ImageSpan(2, 6, fingerprint(pixels + 1), (2, 2)),
        replace(image, grid=(1, 4)),
        replace(image, start=3),
    ]
    keys = block_keys(SCOPE, ids, [image], block=2)
    assert block_keys(SCOPE, ids, [same], block=2) == keys
    for other in [[], *[[other] for other in others]]:
        found = block_keys(SCOPE, ids, other, block=2)
        assert found[0] == keys[0]
        assert not set(found[1:]) & set(keys[1:])


def test_a_sequence_shares_what_another_has_published_also_after_its_end() -> None:
    cache = KVCache(GEOMETRY, blocks=6, block=2)
    keys = block_keys(SCOPE, [5, 6, 7, 8, 9], block=2)
    first = cache.open()
    batch = build_batch([5], cache=cache, sequences=[first])
    k = torch.randn(5, 2, 4)
    for layer in range(2):
        cache.layer(layer).write(k + layer, -k, batch.slot_mapping)
    assert cache.match_prefix(keys) == 0
    cache.publish(first, keys)
    assert cache.match_prefix(keys) == 4
    second = cache.open(keys=keys)
    assert (cache.length(second), cache.blocks(second)) == (4, cache.blocks(first)[:2])
    cache.free(first)
    cache.free(second)
    assert cache.free_blocks == 6
    third = cache.open(keys=[*keys[:2], b"unknown"], room=5)
    tables = build_batch([0], cache=cache, sequences=[third]).block_tables
    assert torch.equal(cache.layer(1).read(tables, 0, 0, 4)[0], k[:4] + 1)


def test_a_block_that_is_written_anew_is_no_longer_found() -> None:
    cache = KVCache(GEOMETRY, blocks=6, block=2)
    keys = block_keys(SCOPE, [5, 6, 7, 8], block=2)
    sequence = cache.open()
    cache.allocate(sequence, 4)
    cache.publish(sequence, keys)
    cache.truncate(sequence, 3)
    assert cache.match_prefix(keys) == 4  # nothing was written yet
    cache.allocate(sequence, 1)
    assert cache.match_prefix(keys) == 2


def test_a_latent_and_a_rotary_key_and_a_layer_without_its_own() -> None:
    """Streams of latent attention; a layer that reads another's has none."""
    latent = (Stream("latent", 1, 16), Stream("rope_key", 1, 4))
    geometry = KVGeometry((latent, (), latent))
    for dtype, position in ((torch.bfloat16, 2 * 2 * 20), (torch.int8, 2 * (20 + 8))):
        cache = KVCache(geometry, blocks=3, block=4, dtype=dtype)
        assert geometry.position_bytes(dtype) == position
        assert cache.nbytes == 12 * position
    assert {name: tuple(x.shape) for name, x in cache.streams(2).items()} == {
        "latent": (3, 4, 1, 16),
        "rope_key": (3, 4, 1, 4),
    }
    assert cache.streams(1) == {}
    sequence = cache.open()
    slots = torch.tensor(cache.allocate(sequence, 3))
    stored = cache.streams(0)["latent"]
    stored.flatten(0, 1)[slots] = torch.arange(48, dtype=torch.int8).reshape(3, 1, 16)
    clone = cache.fork(sequence)
    assert torch.equal(stored[cache.blocks(clone)[0], :3], stored[cache.blocks(sequence)[0], :3])


def test_a_stream_has_a_dtype_of_its_own() -> None:
    """A latent of 8 bits beside a rotary key of 16: only the latent has scales."""
    streams = (Stream("latent", 1, 16), Stream("rope_key", 1, 4, torch.bfloat16))
    geometry = KVGeometry((streams,))
    cache = KVCache(geometry, blocks=2, block=4, dtype=torch.int8)
    assert {name: x.dtype for name, x in cache.streams(0).items()} == {
        "latent": torch.int8,
        "rope_key": torch.bfloat16,
    }
    assert geometry.position_bytes(torch.int8) == 16 + 4 + 2 * 4
    assert cache.nbytes == 8 * geometry.position_bytes(torch.int8)
