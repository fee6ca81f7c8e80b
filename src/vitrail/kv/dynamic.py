"""DynamicCache: transformers' growing cache, tensors (key, value) per layer; models read and append to it.

Vitrail's own KVCache does not copy as it grows. Letters: B rows · G key/value heads · S positions · K head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vitrail.arguments import checked_except, short
from vitrail.errors import InputError, UnsupportedError

MOST_LAYERS = 1 << 10


class DynamicLayer:
    """Keys and values (B, G, S, K) of one layer; None before the first update."""

    is_compileable = False
    is_sliding = False

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @property
    def is_initialized(self) -> bool:
        """Whether the layer holds tensors."""
        return self.keys is not None

    def get_seq_length(self) -> int:
        """Return the number of cached positions."""
        return 0 if self.keys is None else int(self.keys.shape[-2])


@checked_except("update.key_states", "update.value_states")
class DynamicCache:
    """A cache that generate() and forward() accept as `past_key_values` and append to.

    Args:
        ddp_cache_data: (key, value) of every layer, each (B, G, S, K).
        config: accepted as in transformers; layers appear as they are updated.
    """

    is_compileable = False

    def __init__(
        self,
        ddp_cache_data: Iterable[tuple[Tensor, Tensor]] | None = None,
        config: Any = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = False,
    ) -> None:
        if offloading or offload_only_non_sliding:
            raise UnsupportedError("DynamicCache: offloading is not supported; leave it out.")
        self.layers: list[DynamicLayer] = []
        try:
            layers = [] if ddp_cache_data is None else list(ddp_cache_data)
        except (ValueError, OSError) as error:  # as of a file that is closed
            raise InputError(f"DynamicCache takes (keys, values) of every layer: {error}") from error
        for index, pair in enumerate(layers):
            if not isinstance(pair, (list, tuple)) or len(pair) < 2:
                raise InputError(
                    f"DynamicCache takes (keys, values) of every layer, got {short(pair)} for layer {index}."
                )
            self.update(pair[0], pair[1], index)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Append positions to a layer.

        Args:
            key_states, value_states: new positions (B, G, T, K).
            layer_idx: index of the layer.
            cache_kwargs: ignored.

        Returns:
            All cached keys and values (B, G, S, K) of the layer.
        """
        if not (isinstance(key_states, Tensor) and isinstance(value_states, Tensor)) or key_states.dim() != 4:
            raise InputError(
                "DynamicCache.update takes keys and values as tensors (rows, heads, positions, width)."
            )
        if not 0 <= layer_idx < MOST_LAYERS:
            raise InputError(f"layer_idx must be from 0 to {MOST_LAYERS - 1}, got {short(layer_idx)}.")
        self.layers += [DynamicLayer() for _ in range(layer_idx + 1 - len(self.layers))]
        layer = self.layers[layer_idx]
        if layer.keys is None or layer.values is None:
            layer.keys, layer.values = key_states, value_states
        else:
            layer.keys, layer.values = _joined(layer.keys, key_states), _joined(layer.values, value_states)
        return layer.keys, layer.values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached positions of a layer."""
        known = -len(self.layers) <= layer_idx < len(self.layers)
        return self.layers[layer_idx].get_seq_length() if known else 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return -1: the cache has no limit."""
        return -1

    def crop(self, max_length: int) -> None:
        """Drop all positions from `max_length` on; a negative number counts from the end."""
        if not isinstance(max_length, int):
            raise InputError(f"max_length must be a whole number, got {type(max_length).__name__}.")
        length = max_length if max_length >= 0 else max(0, self.get_seq_length() + max_length)
        self._change(lambda x: x[..., :length, :])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row n by row `beam_idx[n]`, for all n."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows with these indices."""
        rows = next((layer.keys.shape[0] for layer in self.layers if layer.keys is not None), 0)
        chosen = torch.arange(rows)
        try:
            fits = indices.dim() == 1 and indices.dtype in (torch.int64, torch.int32, torch.bool)
            fits = fits and (not rows or chosen[indices.cpu()].dim() == 1)
        except (IndexError, NotImplementedError, RuntimeError):
            fits = False
        if not fits:
            raise InputError(
                f"rows of a cache with {rows} are chosen by whole numbers of shape (n,), got {short(indices)}."
            )
        self._change(lambda x: x[indices.to(x.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies adjacent."""
        if not 0 < repeats < 1 << 16:
            raise InputError(f"repeats must be from 1 to {(1 << 16) - 1:,}, got {short(repeats)}.")
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Drop all layers."""
        self.layers.clear()

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (key, value) of every layer."""
        return tuple(self)

    @classmethod
    def from_legacy_cache(
        cls, past_key_values: Iterable[tuple[Tensor, Tensor]] | None = None
    ) -> DynamicCache:
        """Build a cache from (key, value) of every layer, each (B, G, S, K)."""
        return cls(past_key_values)

    def _change(self, change: Any) -> None:
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = change(layer.keys), change(layer.values)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_idx: int) -> tuple[Tensor | None, Tensor | None]:
        layer = self.layers[layer_idx]
        return layer.keys, layer.values

    def __iter__(self) -> Iterator[Any]:
        return ((layer.keys, layer.values) for layer in self.layers)


def _joined(held: Tensor, new: Tensor) -> Tensor:
    if held.shape[:2] != new.shape[:2] or held.shape[3:] != new.shape[3:]:
        raise InputError(
            f"a cache of the shape {tuple(held.shape)} cannot take {tuple(new.shape)}; all but the positions must agree."
        )
    return torch.cat([held, new], dim=-2)
