"""Step: what one pass of the decoder needs to know beside its hidden states."""

from dataclasses import dataclass

from torch import Tensor

from vitrail.ops.segments import Segments


@dataclass(frozen=True, slots=True)
class Step:
    """One pass over L packed rows.

    Attributes:
        positions: int64 (L,), absolute 0-based positions for the rotary embedding.
        segments: which rows belong together and how much each has cached.
        sequences: the cache's sequence of each segment; () when nothing is cached.
        keep: int64 row indices whose logits are wanted; None keeps every row.
    """

    positions: Tensor
    segments: Segments
    sequences: tuple[int, ...] = ()
    keep: Tensor | None = None
