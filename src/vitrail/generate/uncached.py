"""Reference runner: passes without a cache, for training and `use_cache=False`; tests compare the cache with it."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vitrail.generate.protocol import GeneratingModel
from vitrail.generate.runner import Request
from vitrail.ops.batch import build_batch


def run_uncached(
    model: GeneratingModel,
    hidden: Tensor,
    lengths: Sequence[int],
    *,
    positions: Tensor | None = None,
    logits_indices: "Sequence[int] | Tensor | None" = None,
    capture: Any = None,
) -> Tensor:
    """Compute whole sequences in one pass without a cache.

    Args:
        model: model protocol (protocol.py).
        hidden: (L, D), the concatenated embeddings.
        lengths: rows of each sequence.
        positions: int64 (L,); None: from 0 in each sequence.
        logits_indices: rows to compute logits for; None: all.
        capture: records the layers' outputs.

    Returns:
        Logits (n, V).
    """
    batch = build_batch(lengths, positions=positions, logits_indices=logits_indices, device=hidden.device)
    return model.step(hidden, batch, None, capture)


class UncachedRunner:
    """Rows without a cache (`use_cache=False`): every step recomputes all positions. Slow."""

    def __init__(self, model: GeneratingModel, requests: Sequence[Request], *, copies: int = 1) -> None:
        self.model = model
        self.requests = requests
        self._copies = copies
        self._hidden: list[Tensor] = []

    def prefill(self) -> Tensor:
        """Compute the prompts; return logits (R, V) after their last positions, row by row."""
        whole = [request.hidden(self.model, request.length) for request in self.requests]
        self._hidden = [hidden for hidden in whole for _ in range(self._copies)]
        return self._read(range(len(self._hidden)))

    def decode(self, rows: Sequence[int], ids: Tensor) -> Tensor:
        """Append one id (n,) per row; return logits (n, V)."""
        for row, new in zip(rows, self.model.embed(ids.to(self.model.device)), strict=True):
            self._hidden[row] = torch.cat([self._hidden[row], new[None]])
        return self._read(rows)

    def drop(self, row: int) -> None:
        """End a row."""
        self._hidden[row] = self._hidden[row][:0]

    def close(self) -> None:
        """End all rows."""
        self._hidden = []

    def _read(self, rows: Sequence[int]) -> Tensor:
        hidden = [self._hidden[row] for row in rows]
        lengths = [len(one) for one in hidden]
        last = [end - 1 for end in accumulate(lengths)]
        return run_uncached(self.model, torch.cat(hidden), lengths, logits_indices=last)
