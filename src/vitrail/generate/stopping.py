"""Stopping rules of rows: EOS ids, stop strings, lengths, time and the caller's criteria."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitrail.errors import InputError
from vitrail.generate.sampling import SamplingState
from vitrail.responses.text_pieces import REPLACEMENT, Detokenizer

# transformers' signature: (input_ids (B, T), scores or None) → bool (B,), or one bool for all rows
Criterion = Callable[..., Any]


class StopStrings:
    """Detects that a row's newest id completes one of several strings.

    A string may begin in the prompt and may end inside the newest id, whose remaining characters are kept.
    """

    def __init__(self, texts: Iterable[str], tokenizer: Detokenizer) -> None:
        self.texts = tuple(texts)
        self.tokenizer = tokenizer
        # An id is at least one byte; a few more, because decoders treat the first id specially.
        self._window = max(len(text.encode()) for text in self.texts) + 8

    def __call__(self, ids: Sequence[int]) -> bool:
        """Return whether the last of `ids` completes a string."""
        tail = list(ids[-self._window :])
        text = self.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        before = self.tokenizer.decode(
            tail[:-1], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        old = common_length(before.rstrip(REPLACEMENT), text)
        return any(text.find(stop, max(0, old - len(stop) + 1)) >= 0 for stop in self.texts)


@dataclass
class Stopper:
    """All stopping rules of one generate() call.

    Attributes:
        eos_token_ids: ids that end a row.
        limit: maximum number of new ids per row.
        max_time: seconds after which every row ends.
        strings: strings that end a row.
        criteria: the caller's, with transformers' signature.
    """

    eos_token_ids: tuple[int, ...]
    limit: int
    max_time: float | None = None
    strings: StopStrings | None = None
    criteria: Sequence[Criterion] = ()
    started: float = field(default_factory=time.monotonic)

    def reasons(
        self, rows: Sequence[SamplingState], indices: Sequence[int], ids: Callable[[], Tensor], scores: Any
    ) -> list[str | None]:
        """Return why each running row ends with its newest id: "eos", "stop", "length", "time", "criteria" or None.

        Args:
            rows: running rows, newest id included.
            indices: their indices in the whole batch (B).
            ids: returns the whole batch's ids (B, T) for the criteria.
            scores: passed to the criteria.
        """
        late = self.max_time is not None and time.monotonic() - self.started > self.max_time
        by_user = self._ask_user(ids, scores) if self.criteria else None
        reasons: list[str | None] = []
        for row, index in zip(rows, indices, strict=True):
            reason = self._reason(row)
            if reason is None and by_user is not None and by_user(index):
                reason = "criteria"
            reasons.append(reason or ("time" if late else None))
        return reasons

    def _reason(self, row: SamplingState) -> str | None:
        if row.history[-1] in self.eos_token_ids:
            return "eos"
        if self.strings is not None and self.strings(row.history):
            return "stop"
        return "length" if row.drawn >= self.limit else None

    def _ask_user(self, ids: Callable[[], Tensor], scores: Any) -> Callable[[int], bool]:
        batch = ids()
        answers = [
            _per_row(criterion(batch, scores), batch.shape[0], criterion) for criterion in self.criteria
        ]
        return lambda index: any(answer[index] for answer in answers)


def _per_row(answer: Any, batch: int, criterion: Criterion) -> list[bool]:
    if isinstance(answer, Tensor) and answer.dim() == 1 and len(answer) == batch:
        return [bool(value) for value in answer.tolist()]
    if isinstance(answer, bool) or (isinstance(answer, Tensor) and answer.numel() == 1):
        return [bool(answer)] * batch
    shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    raise InputError(
        f"stopping criterion {criterion!r} must return one bool or a bool tensor ({batch},), got {shape}."
    )


def common_length(first: str, second: str) -> int:
    """Return the length of the common prefix of two strings."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
