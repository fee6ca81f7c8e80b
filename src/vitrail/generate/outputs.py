"""GenerateOutput: what generate() returns for return_dict_in_generate=True. No computation."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from vitrail.kv.cache import KVCache


@dataclass
class GenerateOutput:
    """Ids and what was recorded beside them; attribute, key and index access (fields that are None do not count).

    Attributes:
        sequences: int64 (B, T + new), prompts and completions.
        scores: per new id the processed scores (B, V) float32; zero for rows that had ended.
        logits: per new id the raw logits (B, V) float32; zero for rows that had ended.
        past_key_values: the cache, without the last id (transformers' does not hold it either).
        finish_reasons: per row "eos", "stop", "length", "time" or "criteria". Vitrail's own.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    past_key_values: KVCache | None = None
    finish_reasons: tuple[str, ...] | None = None

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: "str | int | slice") -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())
