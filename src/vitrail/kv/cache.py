"""KVCache: block storage for the keys and values of many sequences.

Storage is allocated once, per layer and stream (blocks, block, heads, width), and never concatenated. A sequence has a
list of blocks; sequences can share full ones. Letters: L new rows · G key/value heads · K head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vitrail.arguments import checked, short
from vitrail.configs.fields import COUNT_LIMIT
from vitrail.errors import InputError, UnsupportedError
from vitrail.kv.blocks import BLOCK, BlockAllocator
from vitrail.kv.geometry import KEYS, VALUES, GroupedQueryConfig, KVGeometry, Stream
from vitrail.kv.hf_view import PaddedView
from vitrail.ops.kv import LayerKV

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8)
MOST_BLOCKS = 1 << 24  # of 16 positions: many times the longest context


@dataclass
class _Sequence:
    length: int = 0
    blocks: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # of its first positions, as far as known


@dataclass(frozen=True)
class _Layer:
    """One layer's streams (blocks, block, heads, width); scales (streams, blocks, block, heads) if they are int8."""

    streams: dict[str, Tensor]
    scales: Tensor | None
    device: torch.device

    @cached_property
    def kv(self) -> LayerKV | None:
        """Keys and values in the form that attention takes; None for other streams."""
        if KEYS not in self.streams:
            return None
        return LayerKV(self.streams[KEYS], self.streams[VALUES], self.scales)

    def parts(self) -> list[Tensor]:
        """All tensors, each with blocks and positions as its first two dimensions."""
        return [*self.streams.values(), *(() if self.scales is None else self.scales)]

    def to(self, device: torch.device) -> "_Layer":
        streams = {name: stored.to(device) for name, stored in self.streams.items()}
        return _Layer(streams, None if self.scales is None else self.scales.to(device), device)


class KVCache(PaddedView):
    """The cached streams of every layer for a changing set of sequences.

    Args:
        geometry: the streams of every layer, or a decoder's configuration.
        blocks: number of blocks of `block` positions.
        dtype, device: of the storage; a stream may have its own dtype. int8 is one byte per number and one float32
            scale per position and head (ops/cpu/kv.py); `geometry.position_bytes(dtype)` gives the bytes per position.
    """

    @checked
    def __init__(
        self,
        geometry: KVGeometry | GroupedQueryConfig,
        *,
        blocks: int,
        block: int = BLOCK,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype not in DTYPES:
            raise UnsupportedError(
                f"a cache of {dtype} is not supported; use float32, bfloat16, float16 or int8."
            )
        for name, number in (("blocks", blocks), ("block", block)):
            if not int(name == "block") <= number <= MOST_BLOCKS:
                raise InputError(
                    f"KVCache: {name} must be a whole number up to {MOST_BLOCKS:,}, got {short(number)}."
                )
        self.geometry = KVGeometry.of(geometry)
        self.block = block
        self.dtype = dtype
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise InputError(f"KVCache: device must be one of torch's, got {short(device)}.") from error
        self.allocator = BlockAllocator(blocks, block)
        self._layers = [self._storage(streams) for streams in self.geometry.layers]
        self._sequences: dict[int, _Sequence] = {}
        self._next = 0

    @classmethod
    @checked
    def sized(
        cls,
        geometry: KVGeometry | GroupedQueryConfig,
        capacities: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        block: int = BLOCK,
    ) -> "KVCache":
        """Build a cache large enough for given sequences.

        Args:
            geometry: the streams of every layer, or a decoder's configuration.
            capacities: number of positions of each sequence.
            dtype, device: of the storage.
            block: positions per block.
        """
        if block < 1 or not all(0 <= capacity <= COUNT_LIMIT for capacity in capacities):
            raise InputError(
                f"KVCache.sized takes capacities from 0 to {COUNT_LIMIT:,} positions and blocks of at least 1."
            )
        blocks = sum(-(-capacity // block) for capacity in capacities)
        return cls(geometry, blocks=blocks, block=block, dtype=dtype, device=device)

    def _storage(self, streams: Sequence[Stream]) -> _Layer:
        shape = (len(self.allocator), self.block)
        held = {
            s.name: torch.empty(*shape, s.heads, s.width, dtype=s.dtype or self.dtype, device=self.device)
            for s in streams
        }
        scaled = [stream.heads for stream in streams if held[stream.name].dtype == torch.int8]
        if not scaled:
            return _Layer(held, None, self.device)
        if len(set(scaled)) > 1:
            raise UnsupportedError(
                "an int8 cache needs the same number of heads in all int8 streams of a layer."
            )
        scales = torch.empty(len(scaled), *shape, scaled[0], dtype=torch.float32, device=self.device)
        return _Layer(held, scales, self.device)

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' storage."""
        return sum(part.nbytes for layer in self._layers for part in layer.parts())

    def check_geometry(self, geometry: KVGeometry | GroupedQueryConfig) -> None:
        """Raise InputError unless this cache has the streams of the given model."""
        wanted = KVGeometry.of(geometry)
        if self.geometry != wanted:
            raise InputError(
                f"past_key_values was made for another model: expected {wanted}, got {self.geometry}; pass a cache that "
                "this model returned, or make one with KVCache.sized(model.kv_geometry, [positions])."
            )

    # --- sequences ----------------------------------------------------------------------------------------

    @property
    def sequences(self) -> tuple[int, ...]:
        """The open sequences, oldest first."""
        return tuple(self._sequences)

    @property
    def free_blocks(self) -> int:
        """Number of unused blocks."""
        return self.allocator.free

    def length(self, sequence: int) -> int:
        """Return a sequence's positions, those allocated for the coming batch included."""
        return self._get(sequence).length

    def blocks(self, sequence: int) -> tuple[int, ...]:
        """Return a sequence's blocks in order, reserved ones included."""
        return tuple(self._get(sequence).blocks)

    def known_ids(self, sequence: int) -> list[int]:
        """Return ids of a sequence's first positions, as far as recorded by `record_ids`."""
        return self._get(sequence).ids

    def record_ids(self, sequence: int, ids: Sequence[int], start: int = 0) -> None:
        """Record the ids of the positions from `start` on; ignored if earlier ids are unknown."""
        state = self._get(sequence)
        if len(state.ids) >= start:
            state.ids[start:] = ids[: state.length - start]

    @checked
    def open(
        self, prefix: tuple[int, int] | None = None, *, room: int = 0, keys: Sequence[bytes] = ()
    ) -> int:
        """Open a sequence; return its id.

        Args:
            prefix: (sequence, positions): share the full blocks of the first positions of another sequence.
            room: positions to reserve blocks for, adjacent in memory where possible.
            keys: of the prompt's full blocks (kv/prefix.py): share the longest prefix that is cached.

        Raises:
            CacheFull: too few free blocks; nothing was changed.
        """
        if not 0 <= room <= COUNT_LIMIT:
            raise InputError(f"room must be from 0 to {COUNT_LIMIT:,} positions, got {short(room)}.")
        shared, ids = self.allocator.match_prefix(keys), list[int]()
        if prefix is not None:
            source = self._get(prefix[0])
            if prefix[1] < 0:
                raise InputError(f"a prefix of {prefix[1]} positions cannot be shared.")
            shared = source.blocks[: min(prefix[1], source.length) // self.block]
            ids = source.ids[: len(shared) * self.block]
        self.allocator.share(shared)
        try:
            wanted = max(0, -(-room // self.block) - len(shared))
            taken = self.allocator.take(wanted, after=shared[-1] if shared else None)
        except BaseException:
            self.allocator.give(shared)
            raise
        self._sequences[self._next] = _Sequence(len(shared) * self.block, shared + taken, ids)
        self._next += 1
        self.mask = None  # it lacks a row for the new sequence
        return self._next - 1

    @checked
    def match_prefix(self, keys: Sequence[bytes]) -> int:
        """Return the number of positions that open(keys=) would share."""
        return len(self.allocator.match_prefix(keys)) * self.block

    @checked
    def publish(self, sequence: int, keys: Sequence[bytes]) -> None:
        """Let later sequences share the full blocks of this one; `keys` describe their contents."""
        state = self._get(sequence)
        self.allocator.register(state.blocks[: state.length // self.block], keys)

    @checked
    def fork(self, sequence: int, *, room: int = 0) -> int:
        """Open a sequence with the same past: full blocks are shared, a partial last one is copied.

        Args:
            sequence: to copy.
            room: positions to reserve blocks for, those of the past included.

        Raises:
            CacheFull: too few free blocks; nothing was changed.
        """
        source = self._get(sequence)
        clone = self.open((sequence, source.length), room=max(room, source.length))
        rest = source.length - self._sequences[clone].length
        if rest:
            old = source.blocks[source.length // self.block]
            new = self._sequences[clone].blocks[source.length // self.block]
            self._copy(old, new, rest)
            self._sequences[clone].length = source.length
        self._sequences[clone].ids = source.ids[:]
        return clone

    def allocate(self, sequence: int, rows: int) -> list[int]:
        """Lengthen a sequence by `rows` rows; return their slots (block · positions per block + offset).

        A partial last block that is shared (after truncating a prefix) is copied before it is written.

        Raises:
            CacheFull: too few free blocks; nothing was changed.
        """
        state, block = self._get(sequence), self.block
        if not isinstance(rows, int) or not 0 <= rows <= COUNT_LIMIT:
            raise InputError(f"cannot allocate {short(rows)} rows; truncate() shortens a sequence.")
        first, blocks = state.length, state.blocks
        wanted = max(0, -(-(first + rows) // block) - len(blocks))
        last = first // block
        if rows and first % block and self.allocator.uses(blocks[last]) > 1:
            copy, *taken = self.allocator.take(wanted + 1, after=blocks[-1])
            self._copy(blocks[last], copy, first % block)
            self.allocator.give([blocks[last]])
            blocks[last] = copy
        else:
            taken = self.allocator.take(wanted, after=blocks[-1] if blocks else None) if wanted else []
            if rows and last < len(blocks):
                self.allocator.unregister(blocks[last])
        blocks.extend(taken)
        state.length += rows
        return [blocks[at // block] * block + at % block for at in range(first, state.length)]

    @checked
    def truncate(self, sequence: int, length: int) -> None:
        """Drop all positions from `length` on and free their blocks."""
        state = self._get(sequence)
        if not 0 <= length <= state.length:
            raise InputError(f"cannot truncate a sequence of {state.length} positions to {length}.")
        needed = -(-length // self.block)
        self.allocator.give(state.blocks[needed:])
        del state.blocks[needed:], state.ids[length:]
        state.length = length
        self._mask_out(self.sequences.index(sequence), length)

    def _mask_out(self, row: int, length: int) -> None:
        """Keep `length` positions of a row in the padded view, and drop trailing columns without any."""
        mask = self.mask
        if mask is None or int(mask[row].sum()) <= length:
            return
        cut = mask.clone()
        cut[row] &= mask[row].long().cumsum(dim=0) <= length
        held = cut.any(dim=0).nonzero()
        self.mask = cut[:, : int(held[-1]) + 1 if len(held) else 0]

    @checked
    def free(self, sequence: int) -> None:
        """Close a sequence and free its blocks."""
        self.allocator.give(self._get(sequence).blocks)
        if self.mask is not None:
            self.mask = self.mask[[row for row, other in enumerate(self.sequences) if other != sequence]]
        del self._sequences[sequence]

    reserve, close = allocate, free  # names in version 0.1.0

    @checked
    def grow(self, blocks: int) -> None:
        """Add blocks by moving to larger storage, as generate/runner.py does when the cache is full."""
        before = len(self.allocator)
        if not 0 <= blocks <= MOST_BLOCKS:
            raise InputError(f"a cache grows by 0 to {MOST_BLOCKS:,} blocks, got {short(blocks)}.")
        self.allocator.grow(blocks)
        for index, streams in enumerate(self.geometry.layers):
            larger = self._storage(streams)
            for old, new in zip(self._layers[index].parts(), larger.parts(), strict=True):
                new[:before] = old
            self._layers[index] = larger

    def _copy(self, old: int, new: int, rows: int) -> None:
        """Copy the first `rows` positions of one block to another, in every layer."""
        for part in (part for layer in self._layers for part in layer.parts()):
            part[new, :rows] = part[old, :rows]

    def _get(self, sequence: int) -> _Sequence:
        if not isinstance(sequence, int) or sequence not in self._sequences:
            raise InputError(f"sequence {short(sequence)} is not open in this cache.")
        return self._sequences[sequence]

    # --- storage ------------------------------------------------------------------------------------------

    def streams(self, index: int, device: torch.device | None = None) -> dict[str, Tensor]:
        """Return one layer's streams by name; on another device (device_map) the storage moves there, once."""
        return self._on(index, device).streams

    def layer(self, index: int, device: torch.device | None = None) -> LayerKV:
        """Return one layer's keys and values."""
        kv = self._on(index, device).kv
        if kv is None:
            raise UnsupportedError(f"layer {index} of this cache has no keys and values of its own.")
        return kv

    def _on(self, index: int, device: torch.device | None) -> _Layer:
        layer = self._layers[index]
        if device is not None and device != layer.device:
            layer = self._layers[index] = layer.to(device)
        return layer
