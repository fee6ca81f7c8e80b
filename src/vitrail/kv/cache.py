"""KVCache: keys and values of many sequences in blocks of fixed size. Attention reads it; it computes nothing.

Storage is allocated once, per layer (blocks, block, G, K), and never concatenated. A sequence owns a list of
blocks; full blocks can be shared by several sequences and are counted. Letters: B sequences · G key/value heads ·
S positions · K head width · L rows of a step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrail.configs import MistralConfig
from vitrail.errors import CacheFull, InputError, UnsupportedError
from vitrail.ops.cpu.kv import cache_write
from vitrail.ops.kv import Group, LayerKV
from vitrail.ops.step import Step

BLOCK = 32


def stored_dtype(name: str | None, computed: torch.dtype) -> torch.dtype:
    """The dtype of a cache that is called `name` (GenerationConfig.cache_dtype); None: what is computed with."""
    dtype: torch.dtype = computed if name is None else getattr(torch, name)
    return dtype


def head_bytes(width: int, dtype: torch.dtype) -> int:
    """Bytes of one head's key or value at one position."""
    return width * dtype.itemsize + (4 if dtype == torch.int8 else 0)


@dataclass
class _Sequence:
    length: int = 0
    blocks: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Stored:
    """One layer's keys and values (blocks, block, G, K), and for int8 their scales (2, blocks, block, G)."""

    keys: Tensor
    values: Tensor
    scales: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """Tensors of one memory each, whose first two dimensions are blocks and positions."""
        return [self.keys, self.values, *(() if self.scales is None else self.scales)]

    def to(self, device: torch.device) -> "_Stored":
        scales = None if self.scales is None else self.scales.to(device)
        return _Stored(self.keys.to(device), self.values.to(device), scales)


@dataclass(frozen=True)
class _View:
    """What every layer of one step shares."""

    step: Step
    slots: Tensor
    block_table: Tensor
    tables: tuple[tuple[int, ...], ...]
    groups: list[Group | int] = field(default_factory=list)


class KVCache:
    """Keys and values of every layer, for sequences that come and go.

    Args:
        config: the decoder's geometry.
        blocks: how many blocks of `block` positions there are.
        dtype, device: of the storage. A bf16 cache of n positions takes 4·layers·G·K·n bytes, an int8 cache
            2·layers·G·(K + 4)·n: 8 bits a number and one float32 scale per position and head (ops/cpu/kv.py).
    """

    def __init__(
        self,
        config: MistralConfig,
        *,
        blocks: int,
        block: int = BLOCK,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8):
            raise UnsupportedError(
                f"a cache of {dtype} is not supported; use float32, bfloat16, float16 or int8."
            )
        self.block = block
        self.dtype = dtype
        self.device = torch.device(device)
        self._shape = (block, config.num_key_value_heads, config.head_dim)
        self._layers = [self._storage(blocks) for _ in range(config.num_hidden_layers)]
        self._uses = [0] * blocks
        self._sequences: dict[int, _Sequence] = {}
        self._next = 0
        self._view: _View | None = None
        # forward()'s own view of a padded batch: which of the (B, S) positions hold a row. None: no padding known.
        self.mask: Tensor | None = None

    @classmethod
    def sized(
        cls,
        config: MistralConfig,
        rooms: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        block: int = BLOCK,
    ) -> "KVCache":
        """A cache with room for sequences of the given numbers of positions."""
        blocks = sum(-(-room // block) for room in rooms)
        return cls(config, blocks=blocks, block=block, dtype=dtype, device=device)

    def _storage(self, blocks: int) -> _Stored:
        keys, values = (
            torch.empty(blocks, *self._shape, dtype=self.dtype, device=self.device) for _ in range(2)
        )
        if self.dtype != torch.int8:
            return _Stored(keys, values)
        return _Stored(
            keys, values, torch.empty(2, blocks, *self._shape[:2], dtype=torch.float32, device=self.device)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' storage."""
        return sum(part.nbytes for stored in self._layers for part in stored.parts())

    def check_geometry(self, config: MistralConfig) -> None:
        """Raise InputError unless this cache was made for a decoder of the same layers and key/value heads."""
        wanted = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
        found = (len(self._layers), *self._shape[1:])
        if found != wanted:
            said = ("{} layers of {} key/value heads {} wide".format(*numbers) for numbers in (wanted, found))
            raise InputError(
                "past_key_values was made for another model: expected {}, got {}; pass a cache that this model "
                "returned, or make one with KVCache.sized(model.text_config, [positions]).".format(*said)
            )

    # --- sequences ----------------------------------------------------------------------------------------

    @property
    def sequences(self) -> tuple[int, ...]:
        """The open sequences, oldest first."""
        return tuple(self._sequences)

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence uses."""
        return self._uses.count(0)

    def length(self, sequence: int) -> int:
        """Positions of a sequence that are cached or reserved for the coming step."""
        return self._get(sequence).length

    def open(self, prefix: tuple[int, int] | None = None, *, room: int = 0) -> int:
        """Begin a sequence.

        Args:
            prefix: (sequence, positions): share the full blocks of the first positions of another sequence.
            room: positions for which blocks are set aside at once, neighbours in memory where possible.

        Raises:
            CacheFull: there are not enough blocks; nothing was changed.
        """
        shared: list[int] = []
        if prefix is not None:
            source = self._get(prefix[0])
            if prefix[1] < 0:
                raise InputError(f"a prefix of {prefix[1]} positions cannot be shared.")
            shared = source.blocks[: min(prefix[1], source.length) // self.block]
        wanted = max(0, -(-room // self.block) - len(shared))
        taken = self._take(wanted)
        for block in shared:
            self._uses[block] += 1
        self._sequences[self._next] = _Sequence(len(shared) * self.block, shared + taken)
        self._next += 1
        return self._next - 1

    def fork(self, sequence: int, *, room: int = 0) -> int:
        """A second sequence with the same past: full blocks are shared, the last partial one is copied."""
        source = self._get(sequence)
        clone = self.open((sequence, source.length), room=max(room, source.length))
        rest = source.length - self._sequences[clone].length
        if rest:
            old = source.blocks[source.length // self.block]
            new = self._sequences[clone].blocks[source.length // self.block]
            self._copy(old, new, rest)
            self._sequences[clone].length = source.length
        return clone

    def reserve(self, sequence: int, rows: int) -> None:
        """Lengthen a sequence by the rows of the coming step.

        A last block that another sequence shares (a truncated prefix) is copied before it is written.

        Raises:
            CacheFull: there are not enough blocks; nothing was changed.
        """
        state = self._get(sequence)
        if rows < 0:
            raise InputError(f"cannot reserve {rows} rows; truncate() shortens a sequence.")
        wanted = max(0, -(-(state.length + rows) // self.block) - len(state.blocks))
        last = state.length // self.block
        copied = int(rows > 0 and last < len(state.blocks) and self._uses[state.blocks[last]] > 1)
        if wanted + copied:
            taken = self._take(wanted + copied, after=state.blocks[-1] if state.blocks else None)
            if copied:
                self._copy(state.blocks[last], taken[0], state.length % self.block)
                self._give([state.blocks[last]])
                state.blocks[last] = taken[0]
            state.blocks.extend(taken[copied:])
        state.length += rows
        self._view = None

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all positions from `length` on and give their blocks back."""
        state = self._get(sequence)
        if not 0 <= length <= state.length:
            raise InputError(f"cannot truncate a sequence of {state.length} positions to {length}.")
        needed = -(-length // self.block)
        self._give(state.blocks[needed:])
        del state.blocks[needed:]
        state.length = length
        self._view = None

    def close(self, sequence: int) -> None:
        """End a sequence and give its blocks back."""
        self._give(self._get(sequence).blocks)
        del self._sequences[sequence]
        self._view = None

    def grow(self, blocks: int) -> None:
        """Add blocks by moving to larger storage; generate() and the engine size the cache beforehand instead."""
        for index, stored in enumerate(self._layers):
            larger = self._storage(len(self._uses) + blocks)
            for old, new in zip(stored.parts(), larger.parts(), strict=True):
                new[: len(self._uses)] = old
            self._layers[index] = larger
        self._uses.extend([0] * blocks)
        self._view = None

    def _copy(self, old: int, new: int, rows: int) -> None:
        """The first `rows` positions of one block into another, in every layer."""
        for part in (part for stored in self._layers for part in stored.parts()):
            part[new, :rows] = part[old, :rows]

    def _get(self, sequence: int) -> _Sequence:
        if sequence not in self._sequences:
            raise InputError(f"sequence {sequence} is not open in this cache.")
        return self._sequences[sequence]

    def _take(self, count: int, after: int | None = None) -> list[int]:
        """`count` free blocks: a run that follows `after`, else the first run that is long enough, else any."""
        free = [block for block, uses in enumerate(self._uses) if uses == 0]
        if count > len(free):
            raise CacheFull(
                f"the cache needs {count} more blocks of {self.block} positions and has {len(free)} free; "
                "make it larger or use a shorter context."
            )
        chosen = free[:count]
        starts = [block for block in free if after is not None and block == after + 1] + free
        open_blocks = set(free)
        for start in starts:
            if all(block in open_blocks for block in range(start, start + count)):
                chosen = list(range(start, start + count))
                break
        for block in chosen:
            self._uses[block] += 1
        return chosen

    def _give(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._uses[block] -= 1

    # --- the model's view ---------------------------------------------------------------------------------

    def layer(self, index: int, step: Step) -> LayerKV:
        """One layer's keys and values with the places of the step's new rows."""
        if self._view is None or self._view.step is not step:
            self._view = self._make_view(step)
        stored = self._layers[index]
        if stored.keys.device != step.positions.device:
            # A layer that lies on a device of its own (device_map): its storage goes there, once.
            stored = self._layers[index] = stored.to(step.positions.device)
        view = self._view
        return LayerKV(
            stored.keys, stored.values, view.slots, view.block_table, view.tables, stored.scales, view.groups
        )

    def _make_view(self, step: Step) -> _View:
        states = [self._get(sequence) for sequence in step.sequences]
        lengths = tuple(state.length for state in states)
        if lengths != step.segments.kv_host:
            raise InputError(
                f"the step expects {step.segments.kv_host} positions, the cache has {lengths} reserved."
            )
        widest = max([0, *(len(state.blocks) for state in states)])
        padded = [state.blocks + [0] * (widest - len(state.blocks)) for state in states]
        table = torch.tensor(padded, dtype=torch.int32, device="cpu").reshape(len(states), widest)
        slots = [self._slots(s, step.segments.past_length(row)) for row, s in enumerate(states)]
        joined = torch.tensor([slot for some in slots for slot in some], dtype=torch.int64, device="cpu")
        tables = tuple(tuple(state.blocks) for state in states)
        device = step.positions.device
        return _View(step, joined.to(device), table.to(device), tables)

    def _slots(self, state: _Sequence, start: int) -> list[int]:
        """Where positions start … length−1 of a sequence are stored."""
        return [
            state.blocks[at // self.block] * self.block + at % self.block for at in range(start, state.length)
        ]

    # --- Hugging Face's view: cache[layer] is (key, value), each (B, G, S, K) -----------------------------

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        stored = self._layers[layer]
        return self._padded(stored, 0), self._padded(stored, 1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[layer] for layer in range(len(self)))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the padded batch, the longest sequence's if no padding is known."""
        if self.mask is not None:
            return int(self.mask.shape[1])
        return max((state.length for state in self._sequences.values()), default=0)

    def to_legacy_cache(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """A tuple of (key, value) per layer, copied out of the blocks."""
        return tuple(self)

    def kept(self) -> Tensor:
        """bool (B, S): which positions of the padded batch hold a row."""
        if self.mask is not None:
            return self.mask
        lengths = torch.tensor([state.length for state in self._sequences.values()])
        longest = self.get_seq_length()
        return torch.arange(longest)[None, :] >= (longest - lengths)[:, None]

    def _padded(self, stored: _Stored, side: int) -> Tensor:
        """Keys (side 0) or values of every sequence, (B, G, S, K); those of 8 bits as float32."""
        held = (stored.keys, stored.values)[side]
        kept = self.kept().to(held.device)
        dtype = held.dtype if stored.scales is None else torch.float32
        out = held.new_zeros(*kept.shape, *held.shape[2:], dtype=dtype)
        for row, state in enumerate(self._sequences.values()):
            rows = held[state.blocks]
            if stored.scales is not None:
                rows = rows * stored.scales[side, state.blocks][..., None]
            out[row, kept[row]] = rows.flatten(0, 1)[: state.length]
        return out.transpose(1, 2)

    @classmethod
    def from_legacy(
        cls,
        past: Sequence[tuple[Tensor, Tensor]],
        config: MistralConfig,
        mask: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> "KVCache":
        """A cache from (key, value) per layer, each (B, G, S, K); rows where `mask` (B, S) is 0 are left out.

        dtype: what it holds, by default what the tensors are.
        """
        batch, positions = _check_legacy(past, config, mask)
        kept = torch.ones(batch, positions, dtype=torch.bool) if mask is None else mask.to(torch.bool).cpu()
        lengths = [int(n) for n in kept.sum(dim=1).tolist()]
        rooms = [length + BLOCK for length in lengths]
        cache = cls.sized(config, rooms, dtype=dtype or past[0][0].dtype, device=past[0][0].device)
        for length, room in zip(lengths, rooms, strict=True):
            cache.reserve(cache.open(room=room), length)
        for (keys, values), stored in zip(past, cache._layers, strict=True):
            for row, state in enumerate(cache._sequences.values()):
                flat = torch.tensor(state.blocks)[:, None] * cache.block + torch.arange(cache.block)
                slots = flat.flatten()[: state.length].to(stored.keys.device)
                k, v = (
                    x[row].transpose(0, 1)[kept[row].to(x.device)].detach().to(stored.keys.device)
                    for x in (keys, values)
                )
                cache_write(k, v, stored.keys, stored.values, stored.scales, slots)
        cache.mask = kept
        return cache


def _check_legacy(
    past: Sequence[tuple[Tensor, Tensor]], config: MistralConfig, mask: Tensor | None
) -> tuple[int, int]:
    """(B, S) of a caller's (key, value) per layer, or InputError where they do not fit."""
    if len(past) != config.num_hidden_layers:
        raise InputError(f"past_key_values has {len(past)} layers, the model {config.num_hidden_layers}.")
    wanted = None
    for index, pair in enumerate(past):
        if len(pair) != 2 or not all(isinstance(x, Tensor) for x in pair):
            raise InputError(f"past_key_values[{index}] must be a pair (key, value) of tensors.")
        if wanted is None:
            batch, positions = (pair[0].shape[0], pair[0].shape[2]) if pair[0].dim() == 4 else (0, 0)
            wanted = (batch, config.num_key_value_heads, positions, config.head_dim)
        for given in pair:
            if tuple(given.shape) != wanted:
                raise InputError(
                    f"past_key_values[{index}] has the shape {tuple(given.shape)}, expected {wanted}."
                )
    if mask is not None and tuple(mask.shape) != (batch, positions):
        raise InputError(
            f"the mask of past_key_values has the shape {tuple(mask.shape)}, expected {(batch, positions)}."
        )
    return batch, positions
