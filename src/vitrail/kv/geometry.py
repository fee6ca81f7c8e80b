"""KVGeometry: the streams that a model caches in each layer, and their size in bytes."""

from dataclasses import dataclass
from typing import Protocol

import torch

from vitrail.arguments import short
from vitrail.errors import InputError

_NUMBERS = ("num_hidden_layers", "num_key_value_heads", "head_dim")
KEYS, VALUES = "keys", "values"


class GroupedQueryConfig(Protocol):
    """Fields of a grouped-query attention configuration that determine the cache's geometry."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int


def stored_dtype(name: str | None, computed: torch.dtype) -> torch.dtype:
    """Return the cache dtype for GenerationConfig.cache_dtype `name`; None: the dtype of the computation."""
    dtype: torch.dtype = computed if name is None else getattr(torch, name)
    return dtype


def head_bytes(width: int, dtype: torch.dtype) -> int:
    """Return bytes of one head at one position; int8 adds a float32 scale."""
    return width * dtype.itemsize + (4 if dtype == torch.int8 else 0)


@dataclass(frozen=True, slots=True)
class Stream:
    """One named tensor per layer: `heads` rows of `width` numbers at every position.

    Attributes:
        dtype: of the storage; None: the cache's, as for keys and values.
    """

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None

    def position_bytes(self, dtype: torch.dtype) -> int:
        """Return bytes of one position in a cache of `dtype`."""
        return self.heads * head_bytes(self.width, self.dtype or dtype)


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """The streams of every layer.

    Keys and values for grouped-query attention; a latent and a rotary key for latent attention; () for a layer that
    reads another layer's.
    """

    layers: tuple[tuple[Stream, ...], ...]

    @classmethod
    def of(cls, config: "GroupedQueryConfig | KVGeometry") -> "KVGeometry":
        """Return the geometry of a grouped-query decoder; a geometry is returned unchanged."""
        if isinstance(config, KVGeometry):
            return config
        numbers = [getattr(config, name, None) for name in _NUMBERS]
        if isinstance(config, type) or not all(type(number) is int and number > 0 for number in numbers):
            raise InputError(
                f"expected a decoder's configuration with {', '.join(_NUMBERS)}, got {short(config)}."
            )
        heads, width = config.num_key_value_heads, config.head_dim
        return cls(((Stream(KEYS, heads, width), Stream(VALUES, heads, width)),) * config.num_hidden_layers)

    def __str__(self) -> str:
        """ "40 layers of 8 key/value heads 128 wide" if all layers have the same keys and values."""
        streams = self.layers[0] if self.layers else ()
        alike = all(layer == streams for layer in self.layers)
        if alike and [stream.name for stream in streams] == [KEYS, VALUES]:
            heads, width = streams[0].heads, streams[0].width
            return f"{len(self.layers)} layers of {heads} key/value heads {width} wide"
        named = {stream.name: f"{stream.name} {stream.heads} × {stream.width}" for stream in streams}
        return f"{len(self.layers)} layers, the first of {', '.join(named.values()) or 'nothing'}"

    def position_bytes(self, dtype: torch.dtype) -> int:
        """Return bytes of one position in all layers."""
        return sum(stream.position_bytes(dtype) for streams in self.layers for stream in streams)
