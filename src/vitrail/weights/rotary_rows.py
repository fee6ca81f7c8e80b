"""Row order of q and k: interleaved pairs (Mistral's files) or halves (Hugging Face's). Exact.

A head of width K rotates K/2 pairs. Interleaved, pair i is rows 2i and 2i + 1; in halves, rows i and i + K/2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vitrail.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Heads:
    """Head counts of q and k: the decoder's queries, its keys, the tower's both."""

    query: int
    key: int
    vision: int = 1

    def of(self, name: str) -> int | None:
        """Return the number of heads in the rows of a tensor with this canonical name; None if its rows keep their order."""
        module = name.rpartition(".")[0]
        if not module.endswith((".q_proj", ".k_proj")):
            return None
        if module.startswith("model.vision_tower."):
            return self.vision
        return self.query if module.endswith(".q_proj") else self.key


def to_halves(rows: Tensor, heads: int, name: str) -> Tensor:
    """Reorder interleaved rows (heads·K, …) to halves; a copy. CheckpointError, naming `name`, if they do not divide."""
    return _regroup(rows, heads, name, pairs_first=True)


def to_pairs(rows: Tensor, heads: int, name: str) -> Tensor:
    """Reorder rows from halves (heads·K, …) to interleaved; the exact inverse of `to_halves`."""
    return _regroup(rows, heads, name, pairs_first=False)


def _regroup(rows: Tensor, heads: int, name: str, *, pairs_first: bool) -> Tensor:
    if rows.dim() == 0 or rows.shape[0] % (2 * heads):
        raise CheckpointError(
            f"tensor {name[:200]!r} has the shape {tuple(rows.shape)}; rows for {heads} heads of an even width were "
            "expected."
        )
    half = rows.shape[0] // heads // 2
    inner = (half, 2) if pairs_first else (2, half)
    return rows.view(heads, *inner, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
