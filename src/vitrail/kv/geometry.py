"""KVGeometry: which streams a model caches, layer by layer, and the bytes they take. No storage."""

from dataclasses import dataclass
from typing import Protocol

import torch

from vitrail.arguments import short
from vitrail.errors import InputError

_NUMBERS = ("num_hidden_layers", "num_key_value_heads", "head_dim")
KEYS, VALUES = "keys", "values"


class GroupedQueryConfig(Protocol):
    """The fields of a configuration with grouped-query attention that set the cache's geometry."""

    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int


def stored_dtype(name: str | None, computed: torch.dtype) -> torch.dtype:
    """The dtype of a cache that is called `name` (GenerationConfig.cache_dtype); None: the computation's."""
    dtype: torch.dtype = computed if name is None else getattr(torch, name)
    return dtype


def head_bytes(width: int, dtype: torch.dtype) -> int:
    """Bytes of one head's row at one position; an int8 row has a float32 scale besides."""
    return width * dtype.itemsize + (4 if dtype == torch.int8 else 0)


@dataclass(frozen=True, slots=True)
class Stream:
    """One named tensor per layer: `heads` rows of `width` numbers at every position.

    dtype: of its storage; None: the cache's. Keys and values have the cache's.
    """

    name: str
    heads: int
    width: int
    dtype: torch.dtype | None = None

    def position_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one position in a cache of `dtype`."""
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
        """The geometry of a decoder with grouped-query attention; a geometry is returned as it is."""
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
        """ "40 layers of 8 key/value heads 128 wide", where all layers have the same keys and values."""
        streams = self.layers[0] if self.layers else ()
        alike = all(layer == streams for layer in self.layers)
        if alike and [stream.name for stream in streams] == [KEYS, VALUES]:
            heads, width = streams[0].heads, streams[0].width
            return f"{len(self.layers)} layers of {heads} key/value heads {width} wide"
        named = {stream.name: f"{stream.name} {stream.heads} × {stream.width}" for stream in streams}
        return f"{len(self.layers)} layers, the first of {', '.join(named.values()) or 'nothing'}"

    def position_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one position in all layers."""
        return sum(stream.position_bytes(dtype) for streams in self.layers for stream in streams)
