"""Sampling: penalties, warpers and the draw of each row's next id.

Letters: n rows · V vocabulary. Every function takes one parameter set per row, so that rows of different requests can be
sampled together; names, order and numbers are those of transformers' logits processors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError

_WORD = 0xFFFFFFFF
_ROUNDS = 10


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return four random 32-bit words for a 128-bit counter and a 64-bit key, all as 32-bit words, lowest first.

    Philox4x32-10 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniform(seed: int, stream: int, step: int) -> float:
    """Return draw number `step` of a stream: a float64 in [0, 1), a function of the three numbers only."""
    counter = (step & _WORD, step >> 32 & _WORD, stream & _WORD, stream >> 32 & _WORD)
    low, high, _, _ = philox(counter, (seed & _WORD, seed >> 32 & _WORD))
    return ((high << 32 | low) >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """Sampling parameters of one row. None, or the default, disables a rule.

    No id of `eos_token_ids` is drawn before `min_new_tokens` ids. All but `repetition_penalty`, `no_repeat_ngram_size` and
    `min_new_tokens` only apply if `do_sample`.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()

    @classmethod
    def from_config(cls, config: GenerationConfig, *, width: int = 0) -> "SamplingParameters":
        """Build parameters from a GenerationConfig for prompts of `width` positions (`min_length` counts them).

        Raises:
            InputError: sampling at temperature 0.
        """
        temperature = 1.0 if config.temperature is None else float(config.temperature)
        if config.do_sample and temperature == 0:
            raise InputError(
                "temperature must be above 0 to sample; set do_sample=False for the most probable id."
            )
        return cls(
            do_sample=config.do_sample,
            temperature=temperature,
            top_k=config.top_k or 0,
            top_p=1.0 if config.top_p is None else float(config.top_p),
            min_p=config.min_p,
            repetition_penalty=1.0 if config.repetition_penalty is None else float(config.repetition_penalty),
            no_repeat_ngram_size=config.no_repeat_ngram_size or 0,
            min_new_tokens=max(config.min_new_tokens or 0, (config.min_length or 0) - width),
            eos_token_ids=config.eos_token_ids,
        )


@dataclass(slots=True)
class SamplingState:
    """Sampling state of one row.

    Attributes:
        parameters: of the row.
        history: ids of the prompt and new ids, without padding.
        seed, stream: identify the row's random numbers; draw t uses `uniform(seed, stream, t)`.
        drawn: number of new ids.
        allowed: bool (V,), ids permitted next by a grammar or a prefix function; None permits all.
    """

    parameters: SamplingParameters
    history: list[int] = field(default_factory=list)
    seed: int = 0
    stream: int = 0
    drawn: int = 0
    allowed: Tensor | None = None
    _seen: Tensor | None = None
    _followers: dict[tuple[int, ...], set[int]] | None = None

    def add(self, token: int) -> None:
        """Append a new id."""
        self.history.append(token)
        self.drawn += 1
        if self._seen is not None:
            self._seen[token] = True
        if self._followers is not None:
            self._note(len(self.history))

    def repeats(self) -> set[int]:
        """Return ids that would complete an n-gram of no_repeat_ngram_size already in the history."""
        size = self.parameters.no_repeat_ngram_size
        if size <= 0:
            return set()
        if self._followers is None:
            self._followers = {}
            for end in range(size, len(self.history) + 1):
                self._note(end)
        return self._followers.get(tuple(self.history[len(self.history) - size + 1 :]), set())

    def _note(self, end: int) -> None:
        """Record the id that ends the n-gram at position `end`."""
        start = end - self.parameters.no_repeat_ngram_size
        if start >= 0 and self._followers is not None:
            run = self.history[start:end]
            self._followers.setdefault(tuple(run[:-1]), set()).add(run[-1])

    def seen(self, vocabulary: int, device: torch.device) -> Tensor:
        """Return bool (V,): the ids of the history."""
        if self._seen is None:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[torch.tensor(sorted(set(self.history)), dtype=torch.long, device=device)] = True
        return self._seen


_LARGE = 4096  # vocabulary size above which finding the relevant ids is faster than sorting all
Rows = Sequence[SamplingState]
Between = Callable[[Tensor], Tensor]


class Sampler:
    """Penalties → caller's logits processors → warpers → draw, for rows (n, V) of float logits."""

    def __call__(self, logits: Tensor, rows: Rows, between: Between | None = None) -> tuple[Tensor, Tensor]:
        """Draw the next id of every row; the states are not changed.

        Args:
            logits: (n, V).
            rows: one state per row.
            between: called with the penalised scores, for the caller's logits processors.

        Returns:
            ids (n,) int64 and the processed scores (n, V) float32.

        Raises:
            InputError: no id can be drawn (non-finite logits, or every id is forbidden).
        """
        scores = penalise(logits.float(), rows)
        if between is not None:
            scores = between(scores)
        scores = warp(scores, rows)
        return draw(scores, rows), scores


def penalise(scores: Tensor, rows: Rows) -> Tensor:
    """Apply repetition penalty, n-gram blocking, minimum length and allowed ids."""
    penalties = [row.parameters.repetition_penalty for row in rows]
    if any(penalty != 1.0 for penalty in penalties):
        vocabulary = scores.shape[-1]
        seen = torch.stack([row.seen(vocabulary, scores.device) for row in rows])
        penalty = _column(penalties, scores)
        scores = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    banned = [(n, id_) for n, row in enumerate(rows) for id_ in _banned(row, scores.shape[-1])]
    if banned:
        scores = scores.clone()
        scores[[n for n, _ in banned], [id_ for _, id_ in banned]] = -torch.inf
    if any(row.allowed is not None for row in rows):
        everything = torch.ones(scores.shape[-1], dtype=torch.bool, device=scores.device)
        allowed = torch.stack([everything if row.allowed is None else row.allowed for row in rows])
        scores = scores.masked_fill(~allowed, -torch.inf)
    return scores


def warp(scores: Tensor, rows: Rows) -> Tensor:
    """Apply temperature, top-k, top-p and min-p to sampled rows; greedy rows are unchanged."""
    sampled = [row.parameters if row.parameters.do_sample else SamplingParameters() for row in rows]
    if any(p.temperature != 1.0 for p in sampled):
        scores = scores / _column([p.temperature for p in sampled], scores)
    if any(p.top_k for p in sampled):
        scores = _top_k(scores, [p.top_k or scores.shape[-1] for p in sampled])
    if any(p.top_p < 1.0 for p in sampled):
        scores = _top_p(scores, [p.top_p for p in sampled])
    if any(p.min_p is not None for p in sampled):
        probabilities = scores.softmax(dim=-1)
        floor = _column([p.min_p or 0.0 for p in sampled], scores) * probabilities.amax(dim=-1, keepdim=True)
        scores = scores.masked_fill(probabilities < floor, -torch.inf)
    return scores


def draw(scores: Tensor, rows: Rows) -> Tensor:
    """Return ids (n,) of processed scores: the largest, or where the cumulative probability passes the row's draw."""
    highest, ids = scores.max(dim=-1)
    sampled = [n for n, row in enumerate(rows) if row.parameters.do_sample]
    bad = highest.isnan() | (highest == -torch.inf)
    if sampled:
        cumulated = scores[sampled].double().softmax(dim=-1).cumsum(dim=-1)
        total = cumulated[:, -1:].contiguous()
        numbers = [uniform(rows[n].seed, rows[n].stream, rows[n].drawn) for n in sampled]
        point = torch.tensor(numbers, dtype=torch.float64, device=scores.device)[:, None] * total
        last = torch.searchsorted(cumulated, total)  # rounding must not select an id of probability 0
        ids[sampled] = torch.minimum(torch.searchsorted(cumulated, point, right=True), last).squeeze(1)
        bad[sampled] |= ~total.squeeze(1).isfinite()
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise InputError(
            f"row {row}: no id can be drawn, its scores are not numbers or forbid everything; check the "
            "weights, the dtype (float16 overflows easily) and the functions that were given to generate()."
        )
    return ids


def _top_k(scores: Tensor, counts: Sequence[int]) -> Tensor:
    counts = [min(count, scores.shape[-1]) for count in counts]
    best = scores.topk(max(counts), dim=-1).values
    last = best.gather(1, torch.tensor(counts, device=scores.device)[:, None] - 1)
    return scores.masked_fill(scores < last, -torch.inf)


def _top_p(scores: Tensor, masses: Sequence[float]) -> Tensor:
    # A row at 1.0 keeps all ids, also those whose probability rounds to 0.
    tail = _column([1 - mass if mass < 1 else -1.0 for mass in masses], scores)
    if scores.shape[-1] >= _LARGE:
        probabilities = scores.softmax(dim=-1)
        # Ids of at most tail/V together weigh no more than the tail and are dropped; only the others need sorting.
        heavy = (probabilities > tail / scores.shape[-1]) | (scores == scores.amax(dim=-1, keepdim=True))
        count = int(heavy.sum(dim=-1).max())
        if count <= scores.shape[-1] // 8:  # else sorting all is faster
            return _top_p_of(scores, probabilities, probabilities.topk(count, dim=-1).indices, tail)
    ascending, order = scores.sort(dim=-1)
    drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= tail
    drop[:, -1] = False
    return scores.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)


def _top_p_of(scores: Tensor, probabilities: Tensor, ids: Tensor, tail: Tensor) -> Tensor:
    """Apply top-p to the ids (n, k) only; all others are dropped."""
    order = ids.gather(1, scores.gather(1, ids).sort(dim=-1).indices)
    others = probabilities.scatter(1, order, 0.0).sum(dim=-1, keepdim=True)
    drop = others + probabilities.gather(1, order).cumsum(dim=-1) <= tail
    drop[:, -1] = False
    dropped = torch.ones_like(scores, dtype=torch.bool).scatter(1, order, drop)
    return scores.masked_fill(dropped, -torch.inf)


def _banned(row: SamplingState, vocabulary: int) -> list[int]:
    early = row.drawn < row.parameters.min_new_tokens
    ends = [id_ for id_ in row.parameters.eos_token_ids if 0 <= id_ < vocabulary] if early else []
    return [*ends, *row.repeats()]


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
