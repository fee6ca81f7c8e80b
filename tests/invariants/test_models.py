"""What must hold whatever the weights: cached = full, batch = single, packed = one by one, images apart, chunks = whole.

float32 and 1e-5 of the largest value, since products of different shapes round differently; where the same
product is computed, equality is exact.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests import tiny
from vitrail.kv.cache import KVCache
from vitrail.model import vision
from vitrail.ops.batch import build_batch

FAMILIES = ["llava", "mistral3", "ministral3"]
IMAGE = 10
MODELS: dict[str, Any] = {}


def model(family: str) -> Any:
    """A tiny model, made once."""
    if family not in MODELS:
        MODELS[family] = tiny.model(family).requires_grad_(False)
    return MODELS[family]


def near(found: Tensor, expected: Tensor, what: str = "") -> None:
    assert found.shape == expected.shape
    apart = float((found - expected).abs().max() / expected.abs().max())
    assert apart <= 1e-5, f"{what}: {apart:.2e}"


def unit(family: str) -> int:
    """Pixels that one image token is wide."""
    config = model(family).config
    return int(config.vision_config.patch_size) * int(getattr(config, "spatial_merge_size", 1))


def pictures(family: str, grids: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    """Images (3, H, W) of (rows, columns) tokens."""
    generator = torch.Generator().manual_seed(seed)
    side = unit(family)
    return [torch.randn(3, h * side, w * side, generator=generator) for h, w in grids]


def packed(images: list[Tensor], filler: float = 0.0) -> dict[str, Tensor]:
    """pixel_values with `filler` at the right and the bottom, and image_sizes."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.amax(0).tolist()
    pixels = torch.full((len(images), 3, height, width), filler)
    for place, image in zip(pixels, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return {"pixel_values": pixels, "image_sizes": sizes}


def ids_of(grids: list[tuple[int, int]], text: int, seed: int = 0) -> Tensor:
    """(1, T): a start, the image tokens of each image with a word after it, then `text` words."""
    generator = torch.Generator().manual_seed(seed)
    ids = [1]
    for h, w in grids:
        ids += [IMAGE] * (h * w) + [20]
    return torch.tensor([ids + torch.randint(30, 500, (text,), generator=generator).tolist()])


GRIDS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


# --- the vision tower ------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(grids=GRIDS, family=st.sampled_from(FAMILIES))
def test_packed_images_equal_one_by_one(grids: list[tuple[int, int]], family: str) -> None:
    images = pictures(family, grids)
    together = model(family).encode_images(**packed(images))
    assert [len(features) for features in together] == [h * w for h, w in grids]
    for image, features in zip(images, together, strict=True):
        near(features, model(family).encode_images(image[None])[0])


@pytest.mark.parametrize("rows", [1, 12, 40])
@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_groups_equal_images_at_once(
    family: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features, hidden states and attentions, however few patches go through the blocks together."""
    given = packed(pictures(family, [(2, 3), (1, 1), (1, 2), (3, 3), (1, 1)]))
    tower = model(family).vision_tower
    wanted = {"output_hidden_states": True, "output_attentions": True}
    at_once = tower(**given, **wanted)
    monkeypatch.setitem(vision.ROWS, "cpu", rows)
    grouped = tower(**given, **wanted)
    near(grouped.last_hidden_state, at_once.last_hidden_state)
    for name in ("hidden_states", "attentions"):
        assert len(grouped[name]) == len(at_once[name])
        for a, b in zip(grouped[name], at_once[name], strict=True):
            near(a, b, name)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12), st.integers(1, 60))
def test_groups_are_neighbours_and_small(grids: list[tuple[int, int]], rows: int) -> None:
    groups = vision._groups(grids, rows)
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(grids)))
    for group in groups:
        together = sum(h * w for h, w in grids[group])
        assert together <= rows or group.stop - group.start == 1


@pytest.mark.parametrize("filler", [5.0, float("nan"), float("inf")])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_in_the_padding_changes_nothing(family: str, filler: float) -> None:
    images = pictures(family, [(2, 3), (4, 1)])
    clean, dirty = (model(family).encode_images(**packed(images, x)) for x in (0.0, filler))
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=15, deadline=None)
@given(grids=GRIDS.filter(lambda g: len(g) > 1), family=st.sampled_from(FAMILIES), data=st.data())
def test_one_image_cannot_change_anothers_features(
    grids: list[tuple[int, int]], family: str, data: Any
) -> None:
    """Bit for bit: even where the other image becomes NaN."""
    images = pictures(family, grids)
    before = model(family).encode_images(**packed(images))
    changed = data.draw(st.integers(0, len(grids) - 1))
    images[changed] = images[changed] * torch.nan if data.draw(st.booleans()) else -images[changed]
    after = model(family).encode_images(**packed(images))
    for index, (a, b) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(a, b) == (index != changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_order_of_images_is_order_of_features(family: str) -> None:
    images = pictures(family, [(2, 3), (1, 1), (3, 2), (2, 3)])
    there = model(family).encode_images(**packed(images))
    back = model(family).encode_images(**packed(images[::-1]))
    for a, b in zip(there, back[::-1], strict=True):
        near(a, b)


# --- the decoder -------------------------------------------------------------------------------------------------------


def whole(family: str, ids: Tensor, grids: list[tuple[int, int]]) -> Tensor:
    given = packed(pictures(family, grids)) if grids else {}
    logits: Tensor = model(family)(input_ids=ids, **given).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_full_at_every_split(family: str) -> None:
    grids = [(2, 2), (1, 2)]
    ids = ids_of(grids, 35)  # ministral3's query scaling begins at position 32
    expected = whole(family, ids, grids)
    start = int((ids == IMAGE).nonzero()[-1, 1]) + 1
    given = packed(pictures(family, grids))
    for split in range(start, ids.shape[1]):
        first = model(family)(input_ids=ids[:, :split], **given)
        then = model(family)(input_ids=ids[:, split:], past_key_values=first.past_key_values)
        near(torch.cat([first.logits, then.logits], dim=1), expected, f"split at {split}")


@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from(FAMILIES), cuts=st.sets(st.integers(1, 44), max_size=8))
def test_chunks_equal_the_whole(family: str, cuts: set[int]) -> None:
    """Packed steps over a block cache, as generate() prefills; images may be cut in two."""
    grids = [(2, 3), (1, 2)]
    ids = ids_of(grids, 34)[0]
    features = torch.cat(model(family).encode_images(**packed(pictures(family, grids))))
    cache = KVCache.sized(model(family).text_config, [len(ids)], block=4)
    sequence = cache.open(room=len(ids))
    found, used = [], 0
    bounds = sorted({0, len(ids), *cuts})
    for start, stop in pairwise(bounds):
        chunk = ids[start:stop]
        count = int((chunk == IMAGE).sum())
        rows = model(family).embed(chunk, features[used : used + count])
        used += count
        batch = build_batch([stop - start], cache=cache, sequences=[sequence])
        found.append(model(family).step(rows, batch, cache))
    near(torch.cat(found), whole(family, ids[None], grids)[0])


@settings(max_examples=15, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2)), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
)
def test_batch_equals_single(family: str, rows: list[tuple[int, int]], side: str) -> None:
    conversations = [(ids_of([(2, 1)] * count, length, length), [(2, 1)] * count) for length, count in rows]
    longest = max(ids.shape[1] for ids, _ in conversations)
    batch = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(batch)
    for number, (ids, _) in enumerate(conversations):
        place = slice(longest - ids.shape[1], None) if side == "left" else slice(0, ids.shape[1])
        batch[number, place], mask[number, place] = ids[0], 1
    images = [image for _, grids in conversations for image in pictures(family, grids)]
    output = model(family)(input_ids=batch, attention_mask=mask, **(packed(images) if images else {}))
    for number, (ids, grids) in enumerate(conversations):
        near(output.logits[number][mask[number] == 1], whole(family, ids, grids)[0])
    assert bool((output.logits[mask == 0] == 0).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_id_cannot_change_an_earlier_logit(family: str) -> None:
    ids = ids_of([(2, 2)], 12)
    changed = ids.clone()
    changed[0, -3:] = 499
    near(whole(family, changed, [(2, 2)])[:, :-3], whole(family, ids, [(2, 2)])[:, :-3])


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_conversations_go_on_as_if_alone(family: str) -> None:
    """Two rows of different lengths, continued twice over one cache; holes in the mask are left out too."""
    short, long = ids_of([], 3, 1), ids_of([], 9, 2)
    batch = torch.cat([torch.cat([torch.zeros(1, 6, dtype=torch.int64), short], 1), long])
    mask = torch.tensor([[0] * 6 + [1] * 4, [1] * 10])
    more = torch.tensor([[40, 41], [50, 51]])
    output = model(family)(input_ids=batch, attention_mask=mask)
    for step in range(2):
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], dim=1)
        output = model(family)(
            input_ids=more[:, step : step + 1], attention_mask=mask, past_key_values=output.past_key_values
        )
    for row, start in enumerate((short, long)):
        near(output.logits[row, -1], whole(family, torch.cat([start, more[row : row + 1]], 1), [])[0, -1])


# --- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_save_load_save_gives_the_same_bytes(family: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    model(family).save_pretrained(first, max_shard_size="400KB")
    again = type(model(family)).from_pretrained(first)
    for name, parameter in model(family).named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name
    again.save_pretrained(second, max_shard_size="400KB")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert sum(name.endswith(".safetensors") for name in names) > 1
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
