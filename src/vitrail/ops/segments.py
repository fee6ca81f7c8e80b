"""Segments: row ranges of a packed (L, …) tensor that attend to each other.

Rows of all sequences are concatenated without padding. A segment is one sequence (decoder) or one image (vision
tower); rows of different segments never attend to each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import InputError


@dataclass(frozen=True, slots=True)
class Segments:
    """Row ranges of a packed tensor, on the host and on the device.

    Attributes:
        cu_seqlens_q: int32 (n+1,), first row of each segment; the last entry is L.
        seq_lens_k: int32 (n,), keys of each segment after this step, cached and new.
        q_host, kv_host: the same numbers on the host, so that no step waits for the device.
        causal: a row attends to keys up to itself (decoder) or to all keys of its segment (vision tower).
    """

    cu_seqlens_q: Tensor
    seq_lens_k: Tensor
    q_host: tuple[int, ...]
    kv_host: tuple[int, ...]
    causal: bool

    @classmethod
    def new(
        cls,
        query_lengths: Sequence[int],
        past_lengths: Sequence[int] | None = None,
        *,
        causal: bool = True,
        device: torch.device | str | None = None,
    ) -> "Segments":
        """Build segments of new rows.

        Args:
            query_lengths: number of new rows of each segment.
            past_lengths: number of cached keys before them; None: none.
            causal: whether a row attends to keys up to itself only.
            device: of the tensors.
        """
        past = [0] * len(query_lengths) if past_lengths is None else past_lengths
        offsets = [0]
        for length in query_lengths:
            offsets.append(offsets[-1] + length)
        kv = tuple(new + old for new, old in zip(query_lengths, past, strict=True))
        return cls(
            cu_seqlens_q=torch.tensor(offsets, dtype=torch.int32, device=device),
            seq_lens_k=torch.tensor(kv, dtype=torch.int32, device=device),
            q_host=tuple(offsets),
            kv_host=kv,
            causal=causal,
        )

    @classmethod
    def from_grids(
        cls, grids: Sequence[tuple[int, int]], *, device: torch.device | str | None = None
    ) -> "Segments":
        """Build one segment per image of (rows, columns) patches; every patch attends to its whole image."""
        return cls.new([rows * cols for rows, cols in grids], causal=False, device=device)

    @classmethod
    def from_mask(
        cls,
        mask: Tensor,
        past_lengths: Sequence[int] | None = None,
        *,
        device: torch.device | str | None = None,
    ) -> tuple["Segments", Tensor]:
        """Build segments of the nonzero positions of a (B, T) mask, and their int64 (L,) index into the flat (B·T)."""
        if mask.dim() != 2:
            raise InputError(
                f"attention_mask must have the shape (batch, positions), got {tuple(mask.shape)}."
            )
        kept = mask.to(torch.bool)
        index = kept.flatten().nonzero().squeeze(1)
        lengths = [int(n) for n in kept.sum(dim=1).tolist()]
        return cls.new(lengths, past_lengths, device=device or mask.device), index.to(device or mask.device)

    def __len__(self) -> int:
        return len(self.kv_host)

    @property
    def rows(self) -> int:
        """L, the number of packed rows."""
        return self.q_host[-1]

    def query_length(self, index: int) -> int:
        """Return the number of new rows of one segment."""
        return self.q_host[index + 1] - self.q_host[index]

    def past_length(self, index: int) -> int:
        """Return the number of cached keys of one segment before this step."""
        return self.kv_host[index] - self.query_length(index)

    def runs(self) -> list[tuple[int, int]]:
        """Return runs of adjacent segments of equal shape as (first, count): each run is one batched call."""
        found: list[tuple[int, int]] = []
        shape = None
        for index in range(len(self)):
            here = (self.query_length(index), self.kv_host[index])
            if here == shape:
                found[-1] = (found[-1][0], found[-1][1] + 1)
            else:
                found.append((index, 1))
            shape = here
        return found
