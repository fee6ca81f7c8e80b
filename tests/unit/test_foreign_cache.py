"""generate() and forward() refuse a cache that was made for another model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests import tiny
from vitrail.errors import InputError
from vitrail.kv.cache import KVCache

OTHERS = {
    "fewer heads": {"num_key_value_heads": 1},
    "more heads": {"num_key_value_heads": 8},
    "narrower heads": {"head_dim": 2},
    "wider heads": {"head_dim": 64},
    "fewer layers": {"num_hidden_layers": 1},
    "more layers": {"num_hidden_layers": 9},
}


def cache_of(model: Any, **changes: int) -> KVCache:
    config = copy.deepcopy(model.text_config)
    for name, value in changes.items():
        setattr(config, name, value)
    cache = KVCache.sized(config, [64])
    cache.open(room=64)
    return cache


@pytest.mark.parametrize("changes", OTHERS.values(), ids=list(OTHERS))
def test_a_cache_of_another_geometry_is_refused(changes: dict[str, int]) -> None:
    model = tiny.model("mistral3")
    ids = torch.arange(10, 30)[None]
    before = cache_of(model, **changes)
    for call in (
        lambda: model.generate(ids, past_key_values=before, max_new_tokens=2, do_sample=False),
        lambda: model(input_ids=ids, past_key_values=before, use_cache=True),
    ):
        with pytest.raises(
            InputError, match=r"made for another model: expected \d+ layers of .*, got \d+ layers of"
        ):
            call()
    assert before.length(before.sequences[0]) == 0


def test_a_cache_of_another_precision_is_taken() -> None:
    """Keys and values may be kept in fewer bits than the model computes with."""
    model = tiny.model("mistral3")
    kept = KVCache.sized(model.text_config, [64], dtype=torch.bfloat16)
    kept.open(room=64)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(10, 30)[None], past_key_values=kept, use_cache=True).logits
    assert bool(logits.isfinite().all())


class Lists:
    """A cache of older transformers: two lists of tensors."""

    def __init__(self, pairs: Any = ()) -> None:
        self.key_cache, self.value_cache = [k for k, _ in pairs], [v for _, v in pairs]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        for held, new in ((self.key_cache, keys), (self.value_cache, values)):
            if layer == len(held):
                held.append(new)
            else:
                held[layer] = torch.cat([held[layer], new], dim=2)


def test_a_cache_of_two_lists_is_taken_and_filled() -> None:
    model = tiny.model("mistral3")
    ids = torch.arange(20, 40)[None]
    past = Lists()
    whole = model.generate(ids, max_new_tokens=6, eos_token_id=None)
    first = model.generate(ids, past_key_values=past, max_new_tokens=3, eos_token_id=None)
    assert past.key_cache[0].shape[2] == 22
    assert torch.equal(
        whole, model.generate(first, past_key_values=past, max_new_tokens=3, eos_token_id=None)
    )
    past.key_cache.pop()
    past.key_cache.append(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"type Lists holds \d of its \d layers"):
        model(input_ids=ids, past_key_values=past)
