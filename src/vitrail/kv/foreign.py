"""Read transformers' caches (DynamicCache) as (key, value) pairs and update them after a call, by duck typing."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vitrail.errors import InputError
from vitrail.kv.hf_view import PaddedView

Pairs = Sequence[tuple[Tensor, Tensor]]


def is_foreign(past: Any) -> bool:
    """Return whether this is a transformers cache: `layers` with keys and values, or lists key_cache and value_cache."""
    if past is None or isinstance(past, (PaddedView, Sequence)):
        return False
    lists = [getattr(past, name, None) for name in ("layers", "key_cache", "value_cache")]
    return callable(getattr(past, "update", None)) and (
        isinstance(lists[0], list) or (isinstance(lists[1], list) and isinstance(lists[2], list))
    )


def read_foreign(past: Any) -> Pairs:
    """Return (key, value) of every layer, each (B, G, S, K); () for an empty cache.

    Raises:
        InputError: a static or sliding-window cache, or one with some layers empty.
    """
    name = type(past).__name__
    layers = getattr(past, "layers", None)
    if not isinstance(layers, list):
        pairs = list(zip(past.key_cache, past.value_cache, strict=True))
    else:
        pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
        if any(getattr(layer, "is_compileable", False) for layer in layers):
            raise InputError(
                f"past_key_values of type {name} has a fixed size; pass a DynamicCache or a KVCache."
            )
    held = [(k, v) for k, v in pairs if isinstance(k, Tensor) and isinstance(v, Tensor) and k.numel()]
    if not held:
        return ()
    if len(held) != len(pairs):
        raise InputError(f"past_key_values of type {name} holds {len(held)} of its {len(pairs)} layers.")
    if hasattr(past, "get_seq_length") and any(k.shape[2] != int(past.get_seq_length()) for k, _ in held):
        raise InputError(
            f"past_key_values of type {name} has read {int(past.get_seq_length())} positions and no longer holds all of "
            "them; pass a DynamicCache or a KVCache."
        )
    return tuple(held)


def update_foreign(past: Any, cache: PaddedView, stop: int | None = None) -> None:
    """Append to a transformers cache the positions that `cache` holds beyond it, up to `stop`."""
    held = read_foreign(past)
    start = held[0][0].shape[2] if held else 0
    for index, (keys, values) in enumerate(cache):
        past.update(keys[:, :, start:stop], values[:, :, start:stop], index)
