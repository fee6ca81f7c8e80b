"""LayerKV: one layer's share of the block cache as a step sees it. Who owns which block is decided elsewhere."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from vitrail.ops.cpu import kv as cpu_kv


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences of a decoding step that attention takes in one call: n rows, S positions of whole blocks.

    Attributes:
        rows: their numbers in the step.
        blocks: int64 (n · blocks of one,), their blocks in order.
        bias: (n, 1, 1, S) in the dtype of q, 0 for positions that hold something, else −inf.
        empty: bool (n, block, 1, 1), positions of the last blocks that hold nothing.
    """

    rows: list[int]
    blocks: Tensor
    bias: Tensor
    empty: Tensor


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's keys and values in blocks.

    Attributes:
        keys, values: (blocks, block, G, K).
        slots: int64 (L,), where the step's new rows are written (block · block_size + offset).
        block_table: int32 (n, max_blocks), each segment's blocks in order.
        tables: the same on the host, one tuple per segment.
        scales: (2, blocks, block, G) for an int8 cache, else None.
        groups: which sequences a decoding step takes together; one list for all layers, filled by the first one.
    """

    keys: Tensor
    values: Tensor
    slots: Tensor
    block_table: Tensor
    tables: tuple[tuple[int, ...], ...]
    scales: Tensor | None = None
    groups: list[Group | int] = field(default_factory=list)

    def write(self, k: Tensor, v: Tensor) -> None:
        """Store new rows k, v (L, G, K) at their slots; gradients do not flow through a cache."""
        cpu_kv.cache_write(k.detach(), v.detach(), self.keys, self.values, self.scales, self.slots)

    def written(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The step's new keys and values (L, G, K) as the cache holds them, in `dtype`."""
        return self._rows(0, self.keys, self.slots, dtype), self._rows(1, self.values, self.slots, dtype)

    def _rows(self, side: int, stored: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
        rows = stored.flatten(0, 1)[slots]
        if self.scales is None:
            return rows.to(dtype)
        return (rows * self.scales[side].flatten(0, 1)[slots][..., None]).to(dtype)

    def read(self, segment: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions start … stop−1 of one segment, (stop−start, G, K), float.

        Blocks of a float cache that lie one after another in memory are a view; others are gathered.
        """
        block = self.keys.shape[1]
        first, last = start // block, -(-stop // block)
        table = self.tables[segment][first:last]
        chosen: slice | Tensor
        if all(b - a == 1 for a, b in pairwise(table)):
            chosen = slice(table[0], table[-1] + 1) if table else slice(0, 0)
        else:
            chosen = self.block_table[segment, first:last].long()
        k, v = self.keys[chosen], self.values[chosen]
        if self.scales is not None:
            k, v = k * self.scales[0][chosen][..., None], v * self.scales[1][chosen][..., None]
        lead = start - first * block
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        return k[lead : lead + stop - start], v[lead : lead + stop - start]
