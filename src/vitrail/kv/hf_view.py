"""PaddedView: Hugging Face's interface of a cache, where cache[layer] is (key, value), each (B, G, S, K).

Letters: B sequences · G key/value heads · S positions of the padded batch · K head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from vitrail.arguments import checked
from vitrail.errors import InputError, UnsupportedError
from vitrail.kv.blocks import BLOCK
from vitrail.kv.geometry import KEYS, VALUES, GroupedQueryConfig, KVGeometry
from vitrail.ops.kv import LayerKV

Cache = TypeVar("Cache", bound="PaddedView")


class PaddedView(ABC):
    """Hugging Face's methods, implemented on the blocks of a grouped-query cache."""

    geometry: KVGeometry
    # bool (B, S): False at padding, as passed to forward(). None: no padding is known.
    mask: Tensor | None = None

    @property
    @abstractmethod
    def sequences(self) -> tuple[int, ...]:
        """The open sequences, oldest first."""

    @abstractmethod
    def length(self, sequence: int) -> int:
        """Return the number of positions of a sequence."""

    @abstractmethod
    def blocks(self, sequence: int) -> tuple[int, ...]:
        """Return a sequence's blocks in order."""

    @abstractmethod
    def open(self, *, room: int = 0) -> int:
        """Open a sequence with blocks reserved for `room` positions; return its id."""

    @abstractmethod
    def allocate(self, sequence: int, rows: int) -> list[int]:
        """Lengthen a sequence; return the slots of its new rows."""

    @abstractmethod
    def fork(self, sequence: int) -> int:
        """Open a sequence with the same past; return its id."""

    @abstractmethod
    def truncate(self, sequence: int, length: int) -> None:
        """Drop all positions from `length` on."""

    @abstractmethod
    def free(self, sequence: int) -> None:
        """Close a sequence."""

    @property
    @abstractmethod
    def free_blocks(self) -> int:
        """Number of unused blocks."""

    @abstractmethod
    def grow(self, blocks: int) -> None:
        """Add blocks."""

    @abstractmethod
    def layer(self, index: int) -> LayerKV:
        """Return one layer's keys and values."""

    @classmethod
    @abstractmethod
    def sized(
        cls: type[Cache],
        geometry: KVGeometry,
        capacities: Sequence[int],
        *,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> Cache:
        """Build a cache large enough for sequences of the given numbers of positions."""

    def __len__(self) -> int:
        return len(self.geometry.layers)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        stored = self.layer(layer)
        return self._padded(stored, 0), self._padded(stored, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[layer] for layer in range(len(self)))

    def float(self) -> "PaddedView":
        """Return the cache itself: accelerate makes float32 copies of outputs, and a cache keeps its dtype."""
        return self

    @checked
    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions of the padded batch, or the longest sequence's if no padding is known."""
        if self.mask is not None:
            return int(self.mask.shape[1])
        return max((self.length(sequence) for sequence in self.sequences), default=0)

    @checked
    def crop(self, max_length: int) -> None:
        """Drop all positions of the padded batch from `max_length` on; a negative number counts from the end."""
        _check_number("max_length", max_length)
        length = max_length if max_length >= 0 else max(0, self.get_seq_length() + max_length)
        if length >= self.get_seq_length():
            return
        kept = self.kept()[:, :length]
        for sequence, rows in zip(self.sequences, kept.sum(dim=1).tolist(), strict=True):
            self.truncate(sequence, int(rows))
        self.mask = kept

    @checked
    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row n by row `beam_idx[n]`, for all n; rows may repeat or be left out."""
        if not isinstance(beam_idx, Tensor) or beam_idx.dim() != 1 or beam_idx.is_floating_point():
            raise InputError("beam_idx must be a 1-D tensor of row numbers.")
        before, rows = self.sequences, beam_idx.tolist()
        wrong = [row for row in rows if not 0 <= row < len(before)]
        if wrong:
            raise InputError(f"beam_idx names row {wrong[0]}; the cache has {len(before)} rows.")
        kept = self.kept()
        if len(rows) > self.free_blocks:  # a fork copies at most one block
            self.grow(len(rows) - self.free_blocks)
        for row in rows:
            self.fork(before[row])
        for sequence in before:
            self.free(sequence)
        self.mask = kept[rows]

    @checked
    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times, copies adjacent."""
        _check_number("repeats", repeats)
        if not 1 <= repeats < 1 << 16:
            raise InputError(f"repeats must be at least 1 and at most {(1 << 16) - 1:,}, got {repeats}.")
        self.reorder_cache(torch.arange(len(self.sequences)).repeat_interleave(repeats))

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Return (key, value) per layer, each (B, G, S, K), copied out of the blocks."""
        return tuple(self)

    def kept(self) -> Tensor:
        """Return bool (B, S): which positions of the padded batch are cached, and not padding."""
        if self.mask is not None:
            return self.mask
        lengths = torch.tensor([self.length(sequence) for sequence in self.sequences])
        longest = self.get_seq_length()
        return torch.arange(longest)[None, :] >= (longest - lengths)[:, None]

    def rows(self, stored: LayerKV, side: int, sequence: int) -> Tensor:
        """Keys (side 0) or values of one sequence, (S, G, K); those of 8 bits as float32."""
        blocks = list(self.blocks(sequence))
        held = (stored.keys, stored.values)[side][blocks]
        if stored.scales is not None:
            held = held * stored.scales[side, blocks][..., None]
        return held.flatten(0, 1)[: self.length(sequence)]

    def _padded(self, stored: LayerKV, side: int) -> Tensor:
        """Return keys (side 0) or values of every sequence, (B, G, S, K); int8 ones as float32."""
        held = (stored.keys, stored.values)[side]
        kept = self.kept().to(held.device)
        dtype = held.dtype if stored.scales is None else torch.float32
        out = held.new_zeros(*kept.shape, *held.shape[2:], dtype=dtype)
        for row, sequence in enumerate(self.sequences):
            out[row, kept[row]] = self.rows(stored, side, sequence)
        return out.transpose(1, 2)

    @classmethod
    def from_legacy(
        cls: type[Cache],
        past: Sequence[tuple[Tensor, Tensor]],
        geometry: KVGeometry | GroupedQueryConfig,
        mask: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """Build a cache from (key, value) per layer, each (B, G, S, K).

        Args:
            past: (key, value) per layer.
            geometry: the streams of every layer, or a decoder's configuration.
            mask: (B, S), 0 at padding, which is dropped; None: no padding.
            dtype: of the storage; None: the tensors'.

        Raises:
            InputError: shapes that do not fit the geometry or each other.
        """
        geometry = KVGeometry.of(geometry)
        batch, positions = _check_legacy(past, geometry, mask)
        kept = torch.ones(batch, positions, dtype=torch.bool) if mask is None else mask.to(torch.bool).cpu()
        lengths = [int(n) for n in kept.sum(dim=1).tolist()]
        capacities = [length + BLOCK for length in lengths]
        cache = cls.sized(geometry, capacities, dtype=dtype or past[0][0].dtype, device=past[0][0].device)
        slots = [cache.allocate(cache.open(room=r), n) for r, n in zip(capacities, lengths, strict=True)]
        places = torch.tensor([slot for some in slots for slot in some], dtype=torch.int64)
        for index, pair in enumerate(past):
            stored = cache.layer(index)
            k, v = (x.transpose(1, 2)[kept.to(x.device)].to(stored.keys.device) for x in pair)
            stored.write(k, v, places.to(stored.keys.device))
        cache.mask = kept
        return cache


def _check_number(name: str, value: int) -> None:
    """Raise InputError unless an argument is an integer."""
    if not isinstance(value, int):
        raise InputError(f"{name} must be a whole number, got {type(value).__name__}.")


def _check_legacy(
    past: Sequence[tuple[Tensor, Tensor]], geometry: KVGeometry, mask: Tensor | None
) -> tuple[int, int]:
    """Return (B, S) of (key, value) per layer; raise InputError if their shapes do not fit."""
    if len(past) != len(geometry.layers):
        raise InputError(f"past_key_values has {len(past)} layers, the model {len(geometry.layers)}.")
    if any([stream.name for stream in streams] != [KEYS, VALUES] for streams in geometry.layers):
        raise UnsupportedError("pairs (key, value) need a cache of keys and values in every layer.")
    batch, positions = 0, 0
    for index, (pair, streams) in enumerate(zip(past, geometry.layers, strict=True)):
        if len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
            raise InputError(f"past_key_values[{index}] must be a pair (key, value) of tensors.")
        if not index and pair[0].dim() == 4:
            batch, positions = pair[0].shape[0], pair[0].shape[2]
        for given, stream in zip(pair, streams, strict=True):
            wanted = (batch, stream.heads, positions, stream.width)
            if tuple(given.shape) != wanted:
                raise InputError(
                    f"past_key_values[{index}] has the shape {tuple(given.shape)}, expected {wanted}."
                )
    if mask is not None and tuple(mask.shape) != (batch, positions):
        raise InputError(
            f"the mask of past_key_values has the shape {tuple(mask.shape)}, expected {(batch, positions)}."
        )
    return batch, positions
