"""LayerKV, one layer's keys and values in blocks, and BlockTables, the blocks of each sequence. Both are frozen."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vitrail.ops.cpu import kv as cpu_kv


@dataclass(frozen=True, slots=True)
class BlockTables:
    """Blocks of each segment of a batch, in order.

    Attributes:
        tensor: int32 (n, longest), zero-padded.
        host: the same without padding, so that no batch waits for the device.
    """

    tensor: Tensor
    host: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class LayerKV:
    """Cache storage of one layer.

    Attributes:
        keys, values: (blocks, block, G, K).
        scales: (2, blocks, block, G) for an int8 cache, else None.
    """

    keys: Tensor
    values: Tensor
    scales: Tensor | None = None

    def write(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Store rows k, v (L, G, K) at int64 slots (L,), without gradients."""
        cpu_kv.cache_write(k.detach(), v.detach(), self.keys, self.values, self.scales, slots)

    def at(self, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys and values (L, G, K) at int64 slots (L,), decoded to `dtype`."""
        return self._rows(0, self.keys, slots, dtype), self._rows(1, self.values, slots, dtype)

    def _rows(self, side: int, stored: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
        rows = stored.flatten(0, 1)[slots]
        if self.scales is None:
            return rows.to(dtype)
        return (rows * self.scales[side].flatten(0, 1)[slots][..., None]).to(dtype)

    def read(self, tables: BlockTables, segment: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of positions start … stop−1 of one segment.

        Adjacent blocks of a float cache are returned as a view; others are gathered.

        Args:
            tables: blocks of all segments.
            segment: index of the segment.
            start, stop: positions.

        Returns:
            Keys and values, each (stop−start, G, K), floating point.
        """
        block = self.keys.shape[1]
        first, last = start // block, -(-stop // block)
        table = tables.host[segment][first:last]
        chosen: slice | Tensor
        if all(b - a == 1 for a, b in pairwise(table)):
            chosen = slice(table[0], table[-1] + 1) if table else slice(0, 0)
        else:
            chosen = tables.tensor[segment, first:last].long()
        k, v = self.keys[chosen], self.values[chosen]
        if self.scales is not None:
            k, v = k * self.scales[0][chosen][..., None], v * self.scales[1][chosen][..., None]
        lead = start - first * block
        k, v = k.flatten(0, 1), v.flatten(0, 1)
        return k[lead : lead + stop - start], v[lead : lead + stop - start]
