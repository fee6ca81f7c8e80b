"""Whether whole prompts begin with what a caller's cache holds, where their ids alone cannot say: images, embeddings, and
caches that no ids are known of. Compared are the first block's values, which depend on a position's own embedding alone.

Letters: S cached positions of a prompt · D width · G key/value heads · K head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.generate.features import ImageFeatures
from vitrail.generate.protocol import GeneratingModel
from vitrail.kv.cache import KVCache

_AT_ONCE = 2048  # positions
_EXACT = (torch.float32, torch.float64)
# How far values may lie apart, as a part of their length: what another order of summation does, and what rounding does.
_NEAR, _ROUNDED = 1e-3, 3e-2


@torch.no_grad()
def check_beginning(
    model: GeneratingModel,
    cache: KVCache,
    n: int,
    ids: Tensor,
    embeds: Tensor | None,
    features: Sequence[tuple[ImageFeatures, int]],
) -> None:
    """Raise InputError unless prompt n begins with what the cache holds in its place.

    ids: (L,) on the host, without padding; ignored where there are embeds (L, D). features: the images of the whole call
    and the number of this prompt's first feature, in one pair; none where cached images were not given again.
    """
    compute: Any = getattr(model, "first_values", None)
    sequence = cache.sequences[n]
    length = cache.length(sequence)
    if compute is None or not length:
        return
    places = torch.arange(length)
    if embeds is None:
        is_image = ids[:length] == (-1 if model.image_token_id is None else model.image_token_id)
        unknown = places >= len(cache.known_ids(sequence))
        places = places[is_image | unknown] if features else places[~is_image & unknown]
    if not len(places):
        return
    held = cache.rows(cache.layer(0), 1, sequence)
    near = _NEAR if held.dtype in _EXACT and cache.dtype in _EXACT and model.dtype in _EXACT else _ROUNDED
    taken = 0
    for some in torch.split(places, _AT_ONCE):
        if embeds is not None:
            rows = embeds[some.to(embeds.device)].to(device=model.device, dtype=model.dtype)
        else:
            images = int(is_image[some].sum())
            given = None
            if images:
                every, first = features[0]
                given = every.rows(first + taken, first + taken + images)
                taken += images
            rows = model.embed(ids[some].to(model.device), given)
        values = compute(rows).float()
        there = held[some.to(held.device)].to(values)
        apart = (values - there).flatten(1).norm(dim=1) > near * there.flatten(1).norm(dim=1)
        if bool(apart.any()):
            place = int(some[int(apart.nonzero()[0])])
            kind = "id" if embeds is None else "embedding"
            kind = "image" if embeds is None and bool(is_image[place]) else kind
            raise InputError(
                f"prompt {n} does not begin with what past_key_values holds: position {place} was made of another "
                f"{kind}, or with other weights; give the whole prompt with its images as it was (crop() shortens the "
                "cache), the new ids alone with an attention_mask over all positions, or another cache."
            )
