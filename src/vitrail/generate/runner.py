"""Runner: executes the requests of one call: prefill in chunks, then decoding, one id per row. It does no sampling.

Letters: B prompts · R rows (prompts × completions) · L packed positions of a step · D width · V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import CacheFull
from vitrail.generate.features import ImageFeatures
from vitrail.generate.prompt import count_ids
from vitrail.generate.protocol import GeneratingModel
from vitrail.kv.blocks import BLOCK
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import stored_dtype
from vitrail.ops.batch import build_batch

CHUNK = 2048  # prompt positions per step
AHEAD = 2048  # positions reserved for new ids at first; a longer completion grows the cache

Progress = Callable[[int, int], None]


@dataclass
class Request:
    """State of one prompt.

    Attributes:
        ids: int64 (L,) on the host; ignored with embeddings.
        embeds: (L, D) or None.
        features: of all images of the call, or None.
        next_feature: index of the feature for the next image token.
        done: cached positions.
        past: positions before ids and embeds; all of them are cached.
    """

    ids: Tensor
    embeds: Tensor | None = None
    features: ImageFeatures | None = None
    next_feature: int = 0
    done: int = 0
    past: int = 0

    @property
    def length(self) -> int:
        """Total number of positions."""
        return self.past + len(self.ids if self.embeds is None else self.embeds)

    @property
    def fresh(self) -> Tensor:
        """Ids still to be read."""
        return self.ids[self.done - self.past :]

    def hidden(self, model: GeneratingModel, rows: int) -> Tensor:
        """Return the embeddings (rows, D) of the next `rows` positions."""
        start, self.done = self.done - self.past, self.done + rows
        if self.embeds is not None:
            return self.embeds[start : start + rows].to(device=model.device, dtype=model.dtype)
        ids = self.ids[start : start + rows]
        features = None
        if self.features is not None:
            wanted = count_ids(ids, model.image_token_id)
            if wanted:
                features = self.features.rows(self.next_feature, self.next_feature + wanted)
                self.next_feature += wanted
        return model.embed(ids.to(model.device), features)


class Runner:
    """Rows with a block cache; every position is computed once.

    Args:
        model: model protocol (protocol.py).
        requests: the prompts.
        copies: rows per prompt; they share the prompt's full blocks.
        room: maximum number of new ids per row.
        chunk: positions per prefill step.
        cache: a caller's, with one sequence per prompt, or None for a new one of `cache_dtype` (None: the model's).
        progress: called with (positions done, total positions) before and after every prefill step.
    """

    def __init__(
        self,
        model: GeneratingModel,
        requests: Sequence[Request],
        *,
        copies: int = 1,
        room: int,
        chunk: int = CHUNK,
        cache: KVCache | None = None,
        cache_dtype: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.requests = requests
        self._copies = copies
        self._chunk = min(chunk, CHUNK)
        self._progress = progress
        self._reserve = min(room, AHEAD)
        self._lengths = {} if cache is None else {s: cache.length(s) for s in cache.sequences}
        self.cache = self._allocate(cache_dtype) if cache is None else cache
        self._rows = list(self._lengths)  # cache sequence of each row

    def prefill(self) -> Tensor:
        """Compute all prompts; return logits (R, V) after their last positions, row by row."""
        if not self._lengths:
            self._rows = [self.cache.open(room=request.length + self._reserve) for request in self.requests]
        ends: list[Tensor] = []
        total = sum(request.length - request.done for request in self.requests)
        done = 0
        self._report(done, total)
        while chunks := self._next_chunks():
            ends.append(self._read(chunks))
            done += sum(rows for _, rows in chunks)
            self._report(done, total)
        logits = torch.cat(ends)
        if self._copies > 1:
            self._rows = [row for first in self._rows for row in [first, *self._fork(first)]]
            logits = logits.repeat_interleave(self._copies, dim=0)
        return logits

    def decode(self, rows: Sequence[int], ids: Tensor) -> Tensor:
        """Compute one id (n,) per row; return logits (n, V)."""
        hidden = self.model.embed(ids.to(self.model.device))
        return self._run(hidden, [self._rows[row] for row in rows], [1] * len(rows), None)

    def drop(self, row: int) -> None:
        """End a row and free its blocks."""
        self.cache.free(self._rows[row])

    def cached(self) -> list[int]:
        """Return the cached positions of each row."""
        return [self.cache.length(sequence) for sequence in self._rows]

    def close(self) -> None:
        """End all open rows; a caller's cache is truncated to its original lengths."""
        for sequence in self.cache.sequences:
            if sequence in self._lengths:
                self.cache.truncate(sequence, self._lengths[sequence])
            else:
                self.cache.free(sequence)

    def _allocate(self, dtype: str | None) -> KVCache:
        blocks = 0
        for request in self.requests:
            whole = -(-(request.length + self._reserve) // BLOCK)
            blocks += whole + (self._copies - 1) * (whole - request.length // BLOCK)
        model, held = self.model, stored_dtype(dtype, self.model.dtype)
        return KVCache(model.kv_geometry, blocks=blocks, dtype=held, device=model.device)

    def _fork(self, sequence: int) -> list[int]:
        room = self.cache.length(sequence) + self._reserve
        return [self.cache.fork(sequence, room=room) for _ in range(self._copies - 1)]

    def _next_chunks(self) -> list[tuple[int, int]]:
        """Return (prompt, rows) of the next batch: as many positions as fit in a chunk."""
        chunks, left = [], self._chunk
        for index, request in enumerate(self.requests):
            rows = min(left, request.length - request.done)
            if rows:
                chunks.append((index, rows))
                left -= rows
            if not left:
                break
        return chunks

    def _read(self, chunks: list[tuple[int, int]]) -> Tensor:
        """Compute one prefill batch; return logits of the prompts that end in it."""
        lengths = [rows for _, rows in chunks]
        hidden = torch.cat([self.requests[index].hidden(self.model, rows) for index, rows in chunks])
        last = [
            end - 1
            for (index, _), end in zip(chunks, accumulate(lengths), strict=True)
            if self.requests[index].done == self.requests[index].length
        ]
        return self._run(hidden, [self._rows[index] for index, _ in chunks], lengths, last)

    def _run(
        self,
        hidden: Tensor,
        sequences: Sequence[int],
        lengths: Sequence[int],
        logits_indices: list[int] | None,
    ) -> Tensor:
        """Compute `lengths` new rows of each sequence; return logits of the given rows, or of all."""
        options: dict[str, Any] = {
            "cache": self.cache,
            "sequences": sequences,
            "logits_indices": logits_indices,
            "device": self.model.device,
        }
        try:
            batch = build_batch(lengths, **options)
        except CacheFull:
            # Double every sequence: growing copies the whole storage.
            again = [max(self.cache.length(s), rows) for s, rows in zip(sequences, lengths, strict=True)]
            self.cache.grow(sum(-(-length // BLOCK) + 1 for length in again))
            batch = build_batch(lengths, **options)
        return self.model.step(hidden, batch, self.cache)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)
