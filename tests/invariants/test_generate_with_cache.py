"""A caller's cache: every way of handing over ids, masks, embeddings and images gives the uncached answer or an error."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.toy import IMAGE, ToyModel
from vitrail.errors import InputError
from vitrail.generate.loop import generate
from vitrail.kv.cache import KVCache
from vitrail.kv.dynamic import DynamicCache

FIRST = torch.tensor([[1, *range(20, 30)], [11, 11, 11, 1, *range(40, 47)]])
KEPT = (FIRST != 11).long()
MORE = torch.tensor([[60, 61, 62], [70, 71, 72]])
PAD = {"pad_token_id": 11, "eos_token_id": None}


class Turn:
    """A first answer, the cache that it left, and the right second answer."""

    def __init__(self, more: Tensor = MORE, **options: Any) -> None:
        self.model = tiny.model("mistral3")
        self.options = {"max_new_tokens": 5, **PAD, **options}
        begun = generate(
            self.model, FIRST, attention_mask=KEPT, return_dict_in_generate=True, max_new_tokens=4, **PAD
        )
        self.cache = begun.past_key_values
        self.held = self.lengths()
        self.whole = torch.cat([begun.sequences, more], dim=1)
        self.mask = torch.cat([KEPT, torch.ones(2, 4 + more.shape[1], dtype=torch.long)], dim=1)
        self.part = self.whole[:, self.cache.get_seq_length() :]
        found = generate(self.model, self.whole, attention_mask=self.mask, use_cache=False, **self.options)
        self.right = found[:, self.whole.shape[1] :].tolist()

    def lengths(self) -> list[int]:
        return [self.cache.length(sequence) for sequence in self.cache.sequences]

    def go_on(self, ids: Tensor | None, **inputs: Any) -> list[list[int]]:
        inputs.setdefault("past_key_values", self.cache)
        found: Any = generate(self.model, ids, **inputs, **self.options)
        return found[:, 0 if ids is None else ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    def refused(self, words: str, ids: Tensor, **inputs: Any) -> None:
        with pytest.raises(InputError, match=words):
            self.go_on(ids, **inputs)
        assert self.lengths() == self.held


@pytest.mark.parametrize(
    "options",
    [{}, {"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"do_sample": True, "seed": 3}],
    ids=str,
)
@pytest.mark.parametrize("handed", ["whole", "new", "new, by cache_position", "new, mask of the new ones"])
def test_ids_with_a_cache_equal_uncached(handed: str, options: dict[str, Any]) -> None:
    turn = Turn(**options)
    width = turn.cache.get_seq_length()
    places = {"cache_position": torch.arange(width, turn.whole.shape[1])}
    ids, inputs = {
        "whole": (turn.whole, {"attention_mask": turn.mask}),
        "new": (turn.part, {"attention_mask": turn.mask}),
        "new, by cache_position": (turn.part, places),
        "new, mask of the new ones": (turn.part, {"attention_mask": turn.mask[:, width:], **places}),
    }[handed]
    assert turn.go_on(ids, **inputs) == turn.right
    assert all(now == before + 4 + 4 for now, before in zip(turn.lengths(), turn.held, strict=True))
    assert turn.cache.get_seq_length() == turn.whole.shape[1] + 4


def test_padding_among_new_ids_equals_uncached() -> None:
    turn = Turn(more=torch.tensor([[60, 61, 62], [11, 11, 72]]))
    turn.mask[1, -3:-1] = 0
    right = generate(turn.model, turn.whole, attention_mask=turn.mask, use_cache=False, **turn.options)
    assert turn.go_on(turn.part, attention_mask=turn.mask) == right[:, turn.whole.shape[1] :].tolist()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("form", ["cache", "pairs"])
def test_embeddings_with_a_cache_equal_uncached(form: str, whole: bool) -> None:
    turn = Turn()
    past = turn.cache if form == "cache" else turn.cache.to_legacy_cache()
    embeds = turn.model.get_input_embeddings()(turn.whole if whole else turn.part).detach()
    assert (
        turn.go_on(None, inputs_embeds=embeds, attention_mask=turn.mask, past_key_values=past) == turn.right
    )


@pytest.mark.parametrize("images", ["all", "new"])
def test_images_with_a_cache_equal_uncached(images: str) -> None:
    ids = torch.tensor([[1, IMAGE, IMAGE, 10, 11]])
    more = torch.tensor([[40, IMAGE, 41]])
    pixels = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[4, 4], [4, 2]])
    options = {"max_new_tokens": 5, "eos_token_id": None}
    model = ToyModel()
    begun = generate(
        model,
        ids,
        pixel_values=pixels[:1],
        image_sizes=sizes[:1],
        return_dict_in_generate=True,
        **options | {"max_new_tokens": 3},
    )
    whole = torch.cat([begun.sequences, more], dim=1)
    both = {"pixel_values": pixels, "image_sizes": sizes}
    right = generate(model, whole, use_cache=False, **both, **options)[:, whole.shape[1] :]
    cache = begun.past_key_values
    part, mask = whole[:, cache.get_seq_length() :], torch.ones_like(whole)
    if images == "all":  # images that the cache has are not those of the new ids
        with pytest.raises(InputError, match="has 1 image tokens, the images have 3 features"):
            generate(model, part, attention_mask=mask, past_key_values=cache, **both, **options)
        found = generate(model, whole, attention_mask=mask, past_key_values=cache, **both, **options)
        assert torch.equal(found[:, whole.shape[1] :], right)
        return
    last = {"pixel_values": pixels[1:, :, :, :2], "image_sizes": sizes[1:]}
    found = generate(model, part, attention_mask=mask, past_key_values=cache, **last, **options)
    assert torch.equal(found[:, part.shape[1] :], right)


def test_what_can_be_read_two_ways_is_refused_and_the_cache_stays_whole() -> None:
    turn = Turn()
    width = turn.cache.get_seq_length()
    twice = torch.cat([turn.part] * 6, dim=1)  # new ids, more than there are cached
    turn.refused("holds 14 positions of prompt 0, which has 4; give the whole prompt", turn.part)
    turn.refused("crop()", turn.part, attention_mask=torch.ones_like(turn.part))
    turn.refused("crop()", turn.whole[:, :width], attention_mask=turn.mask[:, :width])
    turn.refused("prompt 0 do not begin with the ids that past_key_values holds", twice)
    turn.refused("attention_mask must have the prompt's shape", turn.part, attention_mask=turn.mask[:, :-1])
    turn.refused("cached rows cannot change", turn.part, attention_mask=torch.ones_like(turn.mask))
    turn.refused("cache_position must count from 14 to 17", turn.part, cache_position=torch.arange(3, 7))
    turn.refused("cache_position must count", turn.part, cache_position=torch.arange(14, 14))
    turn.refused(
        "cache_position must count", turn.part, cache_position=torch.arange(4) + 1, past_key_values=None
    )
    turn.refused(
        "cache_position must be a tensor, an array or lists of numbers; got int 14",
        turn.part,
        cache_position=14,
    )


def test_a_mask_unlike_that_of_pairs_or_unknown_ids_is_refused() -> None:
    turn = Turn()
    cache = KVCache.from_legacy(turn.cache.to_legacy_cache(), turn.model.kv_geometry, turn.cache.kept())
    with pytest.raises(InputError, match="cached rows cannot change"):
        generate(
            turn.model,
            turn.whole,
            attention_mask=torch.ones_like(turn.mask),
            past_key_values=cache,
            **turn.options,
        )
    turn.options["repetition_penalty"] = 1.5
    with pytest.raises(InputError, match="need the ids of the whole prompt"):
        turn.go_on(turn.part, attention_mask=turn.mask, past_key_values=cache)
    assert turn.go_on(turn.whole, attention_mask=turn.mask, past_key_values=cache) is not None


def test_forward_records_ids_so_that_another_prompt_is_refused() -> None:
    model = tiny.model("mistral3")
    with torch.no_grad():
        past = model(input_ids=torch.arange(20, 30)[None], use_cache=True).past_key_values
    with pytest.raises(InputError, match="do not begin"):
        generate(model, torch.arange(40, 60)[None], past_key_values=past, max_new_tokens=2)
    assert past.length(past.sequences[0]) == 10


def test_crop_then_another_branch_equals_uncached() -> None:
    turn = Turn()
    turn.cache.crop(FIRST.shape[1])
    assert turn.cache.get_seq_length() == FIRST.shape[1]
    assert torch.equal(turn.cache.kept(), KEPT.bool())
    ids, mask = (
        torch.cat([FIRST, MORE], dim=1),
        torch.cat([KEPT, torch.ones(2, 3, dtype=torch.long)], dim=1),
    )
    right = generate(turn.model, ids, attention_mask=mask, use_cache=False, **turn.options)
    assert turn.go_on(ids, attention_mask=mask) == right[:, ids.shape[1] :].tolist()
    before = turn.cache.get_seq_length()
    turn.cache.crop(-3)
    assert turn.cache.get_seq_length() == before - 3
    turn.cache.crop(500)
    assert turn.cache.get_seq_length() == before - 3


def test_reordered_and_repeated_rows_equal_uncached() -> None:
    turn = Turn()
    other = copy.deepcopy(turn.cache)
    turn.cache.reorder_cache(torch.tensor([1, 0, 1]))
    rows = [1, 0, 1]
    assert turn.go_on(turn.whole[rows], attention_mask=turn.mask[rows]) == [turn.right[r] for r in rows]
    other.batch_repeat_interleave(2)
    rows = [0, 0, 1, 1]
    found = turn.go_on(turn.part[rows], attention_mask=turn.mask[rows], past_key_values=other)
    assert found == [turn.right[r] for r in rows]
    for method, value, words in (
        ("reorder_cache", torch.tensor([4]), "the cache has 4 rows"),
        ("reorder_cache", [0, 1], "must be a Tensor; got a value of type list"),
        ("batch_repeat_interleave", 0, "at least 1"),
        ("batch_repeat_interleave", 1.5, "must be an integer; got float 1.5"),
        ("crop", "3", "must be an integer; got the string '3'"),
    ):
        with pytest.raises(InputError, match=words):
            getattr(other, method)(value)


def test_the_padded_view_follows_rows_that_are_shortened_freed_and_opened() -> None:
    cache = Turn().cache
    keys = cache[0][0]
    cache.truncate(cache.sequences[0], 9)
    assert cache.kept().sum(dim=1).tolist() == [9, 11]
    assert torch.equal(cache[0][0][1], keys[1])
    cache.free(cache.sequences[0])
    assert torch.equal(cache[0][0][0], keys[1])
    cache.open()
    assert cache[0][0].shape[0] == 2
    assert torch.equal(cache[0][0][0][:, -11:], keys[1][:, 3:])


IMAGE_PROMPT = {"new": torch.tensor([[30, 31, 32]]), "first": torch.tensor([[1, 10, 10, 10, 10, 20, 21, 22]])}


def _image_turn(
    dtype: torch.dtype, cache: Any = None, **options: Any
) -> tuple[Any, dict[str, Any], Any, Tensor, Tensor]:
    """A model, its options with an image, the cache of a first answer, the next whole prompt and its right answer."""
    model = tiny.model("mistral3").to(dtype)
    side = 2 * model.config.vision_config.patch_size * model.config.spatial_merge_size
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(5)).to(dtype)
    given = {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]]), "max_new_tokens": 4, **PAD}
    begun = generate(
        model,
        IMAGE_PROMPT["first"],
        return_dict_in_generate=True,
        past_key_values=cache,
        **given,
        **options,
    )
    whole = torch.cat([begun.sequences, IMAGE_PROMPT["new"]], dim=1)
    right: Any = generate(model, whole, use_cache=False, **given)
    return model, given, begun.past_key_values if cache is None else cache, whole, right


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("made", ["by generate", "in 8 bits", "by forward", "dynamic"])
def test_another_image_under_cached_tokens_is_refused(made: str, dtype: torch.dtype) -> None:
    foreign = DynamicCache() if made == "dynamic" else None
    options = {"cache_dtype": "int8"} if made == "in 8 bits" else {}
    model, given, cache, whole, right = _image_turn(dtype, foreign, **options)
    if made == "by forward":
        images = {name: given[name] for name in ("pixel_values", "image_sizes")}
        with torch.no_grad():
            cache = model(input_ids=whole[:, :-1], use_cache=True, **images).past_key_values
    held = cache.get_seq_length()
    for change in (lambda x: x.flip(-1), lambda x: 1 - x, lambda x: x * x):
        other = {**given, "pixel_values": change(given["pixel_values"])}
        with pytest.raises(InputError, match="position 1 was made of another image"):
            generate(model, whole, past_key_values=cache, **other)
        assert cache.get_seq_length() == held
    found: Any = generate(model, whole, past_key_values=copy.deepcopy(cache), **given)
    assert made == "in 8 bits" or torch.equal(found, right)
    without = {name: value for name, value in given.items() if name not in ("pixel_values", "image_sizes")}
    assert torch.equal(found, generate(model, whole, past_key_values=cache, **without))


@pytest.mark.parametrize("form", ["pairs", "dynamic"])
def test_more_new_ids_than_a_cache_without_ids_holds_are_refused(form: str) -> None:
    turn = Turn()
    cache: Any = turn.cache.to_legacy_cache()
    cache = DynamicCache(cache) if form == "dynamic" else cache
    new = torch.arange(100, 140).view(2, 20)
    mask = torch.cat([KEPT, torch.ones(2, 9, dtype=torch.long)], dim=1)
    turn.refused(
        "does not begin with what past_key_values holds", new, past_key_values=cache, attention_mask=mask
    )
    turn.refused("does not begin with", new + 20, past_key_values=cache, attention_mask=torch.ones_like(mask))
    assert turn.go_on(turn.whole, attention_mask=turn.mask, past_key_values=cache) == turn.right


def test_embeddings_that_are_not_those_of_the_cache_are_refused() -> None:
    model, ids = tiny.model("llava"), torch.arange(20, 36)[None]
    embed = model.get_input_embeddings()
    rows = embed(ids).detach()
    begun: Any = generate(
        model, inputs_embeds=rows[:, :9], return_dict_in_generate=True, max_new_tokens=1, **PAD
    )
    cache = begun.past_key_values
    for wrong in ({"inputs_embeds": rows.flip(1)}, {"inputs": ids + 1}):
        with pytest.raises(InputError, match="position 0 was made of another"):
            generate(model, past_key_values=cache, max_new_tokens=4, **wrong, **PAD)
    right: Any = generate(model, ids, use_cache=False, max_new_tokens=4, **PAD)
    for same in ({"inputs_embeds": rows}, {"inputs": ids}):
        found: Any = generate(model, past_key_values=copy.deepcopy(cache), max_new_tokens=4, **same, **PAD)
        assert torch.equal(found[:, -4:], right[:, -4:])
