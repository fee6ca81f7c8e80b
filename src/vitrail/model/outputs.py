"""What forward() returns: objects with attribute, key and index access. No computation.

Letters: B conversations · T new positions · S cached + new · L patches of all pictures, packed · D text width ·
Dv vision width · A heads · V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from vitrail.kv.cache import KVCache


@dataclass
class ModelOutput:
    """Base of outputs. Fields that are None do not count for index access, keys() and to_tuple()."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self[name] for name in self.keys())

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Pairs of name and value of the fields that are not None."""
        return tuple(zip(self.keys(), self.to_tuple(), strict=True))

    def get(self, key: str, default: Any = None) -> Any:
        """The field's value, or `default` where it is None or unknown."""
        return self[key] if key in self else default  # noqa: SIM401 - no dict

    def __getitem__(self, key: "str | int | slice") -> Any:
        if isinstance(key, str):
            value = getattr(self, key) if key in {f.name for f in fields(self)} else None
            if value is None:
                raise KeyError(key)
            return value
        return self.to_tuple()[key]

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class BaseModelOutput(ModelOutput):
    """The vision tower's output.

    Attributes:
        last_hidden_state: (1, L, Dv).
        hidden_states: one (1, L, Dv) per layer and one before the first.
        attentions: one (1, A, L, L) per layer, zero between pictures.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """A language model's output.

    Attributes:
        loss: () float32, where labels were given.
        logits: (B, T or kept positions, V); zero where the attention mask is.
        past_key_values: the cache; indexable as (key, value) per layer, each (B, G, S, K).
        hidden_states: one (B, T, D) per layer and one before the first; the last is after the final norm.
        attentions: one (B, A, T, S) per layer.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LlavaCausalLMOutputWithPast(CausalLMOutputWithPast):
    """As CausalLMOutputWithPast, with the projected features of all pictures.

    Attributes:
        image_hidden_states: (tokens of all pictures, D).
    """

    image_hidden_states: Tensor | None = None


@dataclass
class Mistral3CausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """The same fields under the name that transformers gives them for Mistral 3."""
