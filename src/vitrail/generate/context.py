"""The running rows of one call as the model sees them: prefill in chunks, then one id per row. No id is chosen here.

Letters: B prompts · R rows (prompts × completions) · L packed positions of a step · D width · V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.errors import CacheFull
from vitrail.generate.features import PictureFeatures
from vitrail.generate.prompt import count_ids
from vitrail.generate.protocol import GeneratingModel
from vitrail.kv.cache import BLOCK, KVCache, stored_dtype
from vitrail.ops.segments import Segments
from vitrail.ops.step import Step

CHUNK = 2048  # positions of prompts in one step
AHEAD = 2048  # positions for new ids that are set aside at first; a longer completion grows the cache

Progress = Callable[[int, int], None]


@dataclass
class Source:
    """One prompt on its way through the model.

    Attributes:
        ids: int64 (L,) on the host; ignored where there are embeddings.
        embeds: (L, D) or None.
        features: of all pictures of the call, or None.
        next_feature: the number of the feature that the next image token takes.
        done: positions that are cached already.
    """

    ids: Tensor
    embeds: Tensor | None = None
    features: PictureFeatures | None = None
    next_feature: int = 0
    done: int = 0

    @property
    def length(self) -> int:
        """L."""
        return len(self.ids) if self.embeds is None else len(self.embeds)

    def hidden(self, model: GeneratingModel, rows: int) -> Tensor:
        """Embeddings of the next `rows` positions, (rows, D)."""
        start, self.done = self.done, self.done + rows
        if self.embeds is not None:
            return self.embeds[start : self.done].to(device=model.device, dtype=model.dtype)
        ids = self.ids[start : self.done]
        features = None
        if self.features is not None:
            wanted = count_ids(ids, model.image_token_id)
            if wanted:
                features = self.features.rows(self.next_feature, self.next_feature + wanted)
                self.next_feature += wanted
        return model.embed(ids.to(model.device), features)


class CachedContext:
    """Rows with a block cache: every position is computed once.

    Args:
        model: takes the steps.
        sources: the prompts.
        copies: rows per prompt; they share the prompt's full blocks.
        room: ids that a row may draw.
        chunk: positions per step of the prefill.
        cache: a caller's, with one sequence per prompt, or None for an own one, of `cache_dtype` (None: the model's).
        progress: called with (positions done, positions in all) before and after every step of the prefill.
    """

    def __init__(
        self,
        model: GeneratingModel,
        sources: Sequence[Source],
        *,
        copies: int = 1,
        room: int,
        chunk: int = CHUNK,
        cache: KVCache | None = None,
        cache_dtype: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.sources = sources
        self._copies = copies
        self._chunk = min(chunk, CHUNK)
        self._progress = progress
        self._room = min(room, AHEAD)
        self._lengths = {} if cache is None else {s: cache.length(s) for s in cache.sequences}
        self.cache = self._allocate(cache_dtype) if cache is None else cache
        self._rows: list[int] = []  # the cache's sequence of each row

    def prefill(self) -> Tensor:
        """Read the prompts; logits (R, V) after their last positions, row by row."""
        given = list(self._lengths)
        self._rows = given or [self.cache.open(room=s.length + self._room) for s in self.sources]
        ends: list[Tensor] = []
        total = sum(source.length - source.done for source in self.sources)
        done = 0
        self._report(done, total)
        while pieces := self._next_pieces():
            ends.append(self._read(pieces))
            done += sum(rows for _, rows in pieces)
            self._report(done, total)
        logits = torch.cat(ends)
        if self._copies > 1:
            self._rows = [row for first in self._rows for row in [first, *self._fork(first)]]
            logits = logits.repeat_interleave(self._copies, dim=0)
        return logits

    def decode(self, rows: Sequence[int], ids: Tensor) -> Tensor:
        """Read one id (n,) per row; logits (n, V)."""
        sequences = tuple(self._rows[row] for row in rows)
        past = [self.cache.length(sequence) for sequence in sequences]
        for sequence in sequences:
            self._reserve(sequence, 1)
        step = Step(
            positions=torch.tensor(past, device=self.model.device),
            segments=Segments.new([1] * len(past), past, device=self.model.device),
            sequences=sequences,
        )
        return self.model.step(self.model.embed(ids.to(self.model.device)), step, self.cache)

    def drop(self, row: int) -> None:
        """End a row and free its blocks."""
        self.cache.close(self._rows[row])

    def cached(self) -> list[int]:
        """Positions that are cached, of each row."""
        return [self.cache.length(sequence) for sequence in self._rows]

    def close(self) -> None:
        """End all rows that are still open; a caller's cache gets back the lengths that it came with."""
        for sequence in self.cache.sequences:
            if sequence in self._lengths:
                self.cache.truncate(sequence, self._lengths[sequence])
            else:
                self.cache.close(sequence)

    def _allocate(self, dtype: str | None) -> KVCache:
        blocks = 0
        for source in self.sources:
            whole = -(-(source.length + self._room) // BLOCK)
            blocks += whole + (self._copies - 1) * (whole - source.length // BLOCK)
        config, model = self.model.text_config, self.model
        return KVCache(config, blocks=blocks, dtype=stored_dtype(dtype, model.dtype), device=model.device)

    def _fork(self, sequence: int) -> list[int]:
        room = self.cache.length(sequence) + self._room
        return [self.cache.fork(sequence, room=room) for _ in range(self._copies - 1)]

    def _reserve(self, sequence: int, rows: int) -> None:
        try:
            self.cache.reserve(sequence, rows)
        except CacheFull:
            # As much again for every row: growth copies the whole storage.
            again = max(self.cache.length(sequence), rows)
            self.cache.grow((-(-again // BLOCK) + 1) * len(self._rows))
            self.cache.reserve(sequence, rows)

    def _next_pieces(self) -> list[tuple[int, int]]:
        """(prompt, rows) of the next step: as many positions as fit into a chunk."""
        pieces, left = [], self._chunk
        for index, source in enumerate(self.sources):
            rows = min(left, source.length - source.done)
            if rows:
                pieces.append((index, rows))
                left -= rows
            if not left:
                break
        return pieces

    def _read(self, pieces: list[tuple[int, int]]) -> Tensor:
        """One step of the prefill; logits of those prompts that end in it."""
        device = self.model.device
        past = [self.sources[index].done for index, _ in pieces]
        lengths = [rows for _, rows in pieces]
        hidden = torch.cat([self.sources[index].hidden(self.model, rows) for index, rows in pieces])
        segments = Segments.new(lengths, past, device=device)
        last = [
            segments.q_host[n + 1] - 1
            for n, (index, _) in enumerate(pieces)
            if self.sources[index].done == self.sources[index].length
        ]
        for index, rows in pieces:
            self._reserve(self._rows[index], rows)
        positions = torch.cat([torch.arange(p, p + n) for p, n in zip(past, lengths, strict=True)])
        step = Step(
            positions=positions.to(device),
            segments=segments,
            sequences=tuple(self._rows[index] for index, _ in pieces),
            keep=torch.tensor(last, dtype=torch.long, device=device),
        )
        return self.model.step(hidden, step, self.cache)

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(done, total)


class PlainContext:
    """Rows without a cache (`use_cache=False`): every step reads everything again. Slow, and the cache's oracle."""

    def __init__(self, model: GeneratingModel, sources: Sequence[Source], *, copies: int = 1) -> None:
        self.model = model
        self.sources = sources
        self._copies = copies
        self._hidden: list[Tensor] = []

    def prefill(self) -> Tensor:
        """Read the prompts; logits (R, V) after their last positions, row by row."""
        whole = [source.hidden(self.model, source.length) for source in self.sources]
        self._hidden = [hidden for hidden in whole for _ in range(self._copies)]
        return self._read(range(len(self._hidden)))

    def decode(self, rows: Sequence[int], ids: Tensor) -> Tensor:
        """Read one more id (n,) per row; logits (n, V)."""
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
        device = self.model.device
        lengths = [len(self._hidden[row]) for row in rows]
        segments = Segments.new(lengths, device=device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        keep = torch.tensor(segments.q_host[1:], device=device) - 1
        hidden = torch.cat([self._hidden[row] for row in rows])
        return self.model.step(hidden, Step(positions, segments, (), keep), None)
