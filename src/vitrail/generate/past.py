"""Past: positions of a call's prompts in a cache passed by the caller.

Letters: B prompts · S cached positions of the padded batch · T given positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.kv.cache import KVCache
from vitrail.kv.foreign import is_foreign, read_foreign
from vitrail.kv.geometry import KVGeometry, stored_dtype


@dataclass(frozen=True)
class Past:
    """Cached positions of each prompt.

    Attributes:
        given: past_key_values as passed, or None.
        cache: the cache to continue, one open sequence per prompt; None starts a new one.
        lengths: cached positions of each prompt.
        seen: bool (B, S), the cached positions, if only new ids were passed; else None.
        ids: of each prompt's cached positions as far as known, if only new ids were passed.
    """

    given: Any = None
    cache: KVCache | None = None
    lengths: tuple[int, ...] = ()
    seen: Tensor | None = None
    ids: tuple[list[int], ...] = ()

    @property
    def new_only(self) -> bool:
        """Whether the passed ids follow the cached ones."""
        return self.seen is not None

    def join(self, kept: Tensor) -> Tensor:
        """Return the passed positions (B, T) preceded by the cached ones."""
        return kept if self.seen is None else torch.cat([self.seen, kept], dim=1)

    def ids_before(self, n: int) -> list[int]:
        """Return the ids of prompt n before the passed ones, as far as known."""
        return self.ids[n] if self.ids else []

    def check_ids_known(self) -> None:
        """Raise InputError if ids of cached positions are needed but unknown."""
        if any(len(ids) < length for ids, length in zip(self.ids, self.lengths, strict=False)):
            raise InputError(
                "repetition_penalty and no_repeat_ngram_size need the ids of the whole prompt, and past_key_values does not "
                "hold them; give the whole prompt as input_ids."
            )


@dataclass(frozen=True)
class CacheCall:
    """The cache arguments of a call.

    Attributes:
        given: past_key_values as passed.
        held: as a KVCache or (key, value) pairs, or None.
        batch, new: B and T.
        width: S.
        new_only: whether the ids follow the cached ones, given by a mask over S + T positions or by cache_position.
        mask: over S + T positions, or None.
        new_mask: of the T passed positions, or None.
    """

    given: Any
    held: "KVCache | Sequence[tuple[Tensor, Tensor]] | None"
    batch: int
    new: int
    width: int
    new_only: bool
    mask: Tensor | None
    new_mask: Tensor | None

    @classmethod
    def read(cls, inputs: Mapping[str, Any], batch: int, new: int) -> "CacheCall":
        """Determine whether the ids are whole prompts or only new ones.

        Raises:
            InputError: past_key_values of another type, or a cache_position that fits neither.
        """
        given, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
        held = read_foreign(given) if is_foreign(given) else given
        if held is not None and not isinstance(held, (KVCache, Sequence)):
            raise InputError(
                "past_key_values must be a KVCache, a DynamicCache or pairs (key, value), got "
                f"{type(given).__name__}."
            )
        width = _width(held)
        whole = mask is not None and mask.dim() == 2 and tuple(mask.shape) == (batch, width + new)
        follows = _counts_from(inputs.get("cache_position"), width, new)
        new_only = bool(width) and (whole or follows)
        if mask is None or not whole or not width:
            return cls(given, held if width else _own(held), batch, new, width, new_only, None, mask)
        return cls(given, held, batch, new, width, new_only, mask, mask[:, width:])

    def past(
        self, geometry: KVGeometry, kept: Tensor, rows: Sequence[Tensor], cache_dtype: str | None
    ) -> Past:
        """Return the cached positions, checked against the prompt: kept bool (B, T), rows its ids without padding.

        Raises:
            InputError: a cache of other rows, or ids and mask that do not begin with the cached ones.
        """
        held = self.held
        if held is None:
            return Past(given=self.given)
        if not isinstance(held, KVCache):
            if not self.new_only and self.new <= self.width:
                raise self._too_short(0, self.width, self.new)
            held = KVCache.from_legacy(held, geometry, self._legacy_mask(kept))
        held.check_geometry(geometry)
        if stored_dtype(cache_dtype, held.dtype) != held.dtype:
            raise InputError(
                f"past_key_values hold {held.dtype} and cache_dtype asks for {cache_dtype}; leave one out."
            )
        if len(held.sequences) != self.batch:
            raise InputError(f"past_key_values holds {len(held.sequences)} rows, the prompt {self.batch}.")
        lengths = tuple(held.length(sequence) for sequence in held.sequences)
        if not self.width:
            return Past(self.given, held, lengths)
        seen = held.kept().cpu()
        if self.new_only:
            if self.mask is not None and not torch.equal(self.mask[:, : self.width].cpu() != 0, seen):
                raise InputError(
                    "attention_mask differs from the one that past_key_values was made with; cached rows cannot change."
                )
            return Past(self.given, held, lengths, seen, tuple(held.known_ids(s)[:] for s in held.sequences))
        for n, length in enumerate(lengths):
            self._check_beginning(
                n, held.known_ids(held.sequences[n])[:length], length, seen[n], kept[n], rows
            )
        return Past(self.given, held, lengths)

    def _legacy_mask(self, kept: Tensor) -> Tensor | None:
        """Return bool (B, S): which positions of (key, value) pairs are not padding; None: all of them."""
        if not self.new_only:
            return kept[:, : self.width]
        return None if self.mask is None else self.mask[:, : self.width] != 0

    def _check_beginning(
        self, n: int, known: list[int], length: int, seen: Tensor, kept: Tensor, rows: Sequence[Tensor]
    ) -> None:
        """Raise InputError unless prompt n begins with the cached ids and is longer."""
        if int(kept.sum()) <= length:
            raise self._too_short(n, length, int(kept.sum()))
        if rows and rows[n][: len(known)].tolist() != known:
            raise InputError(
                f"input_ids of prompt {n} do not begin with the ids that past_key_values holds; {self._ways()}"
            )
        if (len(known) < length or not rows) and not torch.equal(
            kept.nonzero().flatten()[:length], seen.nonzero().flatten()
        ):
            raise InputError(
                "attention_mask differs from the one that past_key_values was made with; cached rows cannot change."
            )

    def _too_short(self, n: int, length: int, got: int) -> InputError:
        return InputError(
            f"past_key_values holds {length} positions of prompt {n}, which has {got}; {self._ways()}"
        )

    def _ways(self) -> str:
        return (
            "give the whole prompt, longer than what is cached (crop() shortens the cache), or the new ids alone with an "
            f"attention_mask over all {self.width + self.new} positions, cached ones first."
        )


def _own(held: "KVCache | Sequence[tuple[Tensor, Tensor]] | None") -> KVCache | None:
    """Return the caller's empty cache to fill, if it is a KVCache."""
    return held if isinstance(held, KVCache) else None


def _width(held: "KVCache | Sequence[tuple[Tensor, Tensor]] | None") -> int:
    """Return S of the caller's cache."""
    if held is None:
        return 0
    if isinstance(held, KVCache):
        return held.get_seq_length() if any(held.length(s) for s in held.sequences) else 0
    try:
        return int(held[0][0].shape[2]) if held else 0
    except (TypeError, IndexError, AttributeError):
        raise InputError("past_key_values must hold a pair (key, value) of tensors per layer.") from None


def _counts_from(cache_position: Any, width: int, new: int) -> bool:
    """Return whether cache_position names the T positions after the S cached ones."""
    if cache_position is None:
        return False
    if not isinstance(cache_position, Tensor) or cache_position.dim() != 1:
        raise InputError("cache_position must be a 1-D tensor of positions.")
    places = cache_position.tolist()
    if places == list(range(width, width + new)):
        return True
    if places and places in (list(range(new)), list(range(width, new))):
        return False
    raise InputError(
        f"cache_position must count from {width} to {width + new - 1}: {width} positions are cached and {new} are new."
    )
