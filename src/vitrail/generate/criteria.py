"""transformers' classes of stopping criteria and logits processors, and lists of both.

generate() accepts any callables of the same signature; these are the classes that code for transformers subclasses.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.arguments import checked, short
from vitrail.errors import InputError
from vitrail.generate.stopping import StopStrings
from vitrail.responses.text_pieces import Detokenizer


class StoppingCriteria(ABC):
    """Base of stopping criteria: (input_ids (B, T), scores or None) → bool (B,), or one bool for all rows."""

    @abstractmethod
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Return whether each row ends with its newest id."""


@checked
class MaxLengthCriteria(StoppingCriteria):
    """Ends rows at `max_length` positions, prompt included."""

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length, self.max_position_embeddings = max_length, max_position_embeddings

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return _all(_rows(input_ids), input_ids.shape[-1] >= self.max_length)


@checked
class MaxTimeCriteria(StoppingCriteria):
    """Ends rows `max_time` seconds after `initial_timestamp` (default: now)."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return _all(_rows(input_ids), time.time() - self.initial_timestamp > self.max_time)


@checked
class EosTokenCriteria(StoppingCriteria):
    """Ends a row at any of the given ids."""

    def __init__(self, eos_token_id: int | list[int] | Tensor) -> None:
        dense = (
            isinstance(eos_token_id, Tensor)
            and eos_token_id.layout == torch.strided
            and not eos_token_id.is_meta
        )
        found: Any = (
            eos_token_id.flatten().tolist() if isinstance(eos_token_id, Tensor) and dense else eos_token_id
        )
        ids = [found] if isinstance(found, int) else found
        if isinstance(ids, Tensor) or not all(isinstance(index, int) and 0 <= index < 2**31 for index in ids):
            raise InputError(f"eos_token_id must be an id or a list of ids, got {short(eos_token_id)}.")
        self.eos_token_id = torch.tensor(ids, dtype=torch.long)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.isin(_rows(input_ids)[:, -1], self.eos_token_id.to(input_ids.device))


@checked
class StopStringCriteria(StoppingCriteria):
    """Ends a row when its newest id completes one of several strings, as generate(stop_strings=…) does."""

    def __init__(self, tokenizer: Detokenizer, stop_strings: str | Sequence[str]) -> None:
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        if not self.stop_strings or not all(map(_is_text, self.stop_strings)):
            raise InputError(f"stop_strings must be a text or a list of texts, got {short(stop_strings)}.")
        self._completes = StopStrings(self.stop_strings, tokenizer)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ends = [self._completes(row) for row in _rows(input_ids).tolist()]
        return torch.tensor(ends, dtype=torch.bool, device=input_ids.device)


@checked
class StoppingCriteriaList(list[Any]):
    """A list of criteria, any of which ends a row."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        done = _all(_rows(input_ids), False)
        for criterion in _callables(self):
            done = done | criterion(input_ids, scores, **kwargs)
        return done

    @property
    def max_length(self) -> int | None:
        """The limit of the first MaxLengthCriteria."""
        return next((one.max_length for one in self if isinstance(one, MaxLengthCriteria)), None)


class LogitsProcessor(ABC):
    """Base of logits processors: (input_ids (B, T), scores (B, V)) → scores."""

    @abstractmethod
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores (B, V)."""


@checked
class LogitsProcessorList(list[Any]):
    """A list of logits processors, applied in order."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        if kwargs:
            raise InputError(
                f"LogitsProcessorList takes ids and scores alone, got {', '.join(sorted(kwargs))} too."
            )
        for processor in _callables(self):
            scores = processor(input_ids, scores)
        return scores


def _is_text(value: Any) -> bool:
    """Whether it is a text that UTF-8 can hold, not an empty one."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= sign <= "\udfff" for sign in value)


def _callables(held: list[Any]) -> list[Any]:
    if wrong := [one for one in held if not callable(one)]:
        raise InputError(f"{type(held).__name__} must hold callables, got {short(wrong[0])}.")
    return held


def _rows(input_ids: Tensor) -> Tensor:
    """Ids (B, T), if they are such."""
    if (
        input_ids.dim() != 2
        or input_ids.is_floating_point()
        or input_ids.is_complex()
        or not input_ids.shape[1]
    ):
        raise InputError(
            f"input_ids must be whole numbers of shape (rows, positions), got {input_ids.dtype} of shape "
            f"{tuple(input_ids.shape)}."
        )
    return input_ids


def _all(input_ids: Tensor, done: bool) -> Tensor:
    return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)
