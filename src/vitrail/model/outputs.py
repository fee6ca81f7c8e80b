"""Outputs of forward(), with attribute, key and index access.

Letters: B conversations · T new positions · S cached + new · L patches of all images, packed · D text width ·
Dv vision width · A heads · V vocabulary.
"""

from dataclasses import dataclass

from torch import Tensor

from vitrail.generate.model_output import ModelOutput as ModelOutput
from vitrail.kv.cache import KVCache


@dataclass
class BaseModelOutput(ModelOutput):
    """The vision tower's output.

    Attributes:
        last_hidden_state: (1, L, Dv).
        hidden_states: one (1, L, Dv) per layer and one before the first.
        attentions: one (1, A, L, L) per layer, zero between images.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """A decoder's output without a head.

    Attributes:
        last_hidden_state: (B, T, D) after the final norm; zero where the attention mask is.
        past_key_values, hidden_states, attentions: as in CausalLMOutputWithPast.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LlavaModelOutputWithPast(BaseModelOutputWithPast):
    """As BaseModelOutputWithPast, with the projected features of all images.

    Attributes:
        image_hidden_states: (tokens of all images, D).
    """

    image_hidden_states: Tensor | None = None


@dataclass
class Mistral3ModelOutputWithPast(LlavaModelOutputWithPast):
    """The same fields under the name that transformers gives them for Mistral 3."""


class ImageFeatures(tuple[Tensor, ...]):
    """Result of get_image_features(): the projected features of each image, (tokens, D).

    transformers 4.57 returns such a tuple, transformers 5 an object that holds it as `pooler_output`; this is both.
    """

    @property
    def pooler_output(self) -> tuple[Tensor, ...]:
        """The same tuple, under transformers 5's name."""
        return tuple(self)


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """A language model's output.

    Attributes:
        loss: () float32, with labels only.
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
    """As CausalLMOutputWithPast, with the projected features of all images.

    Attributes:
        image_hidden_states: (tokens of all images, D).
    """

    image_hidden_states: Tensor | None = None


@dataclass
class Mistral3CausalLMOutputWithPast(LlavaCausalLMOutputWithPast):
    """The same fields under the name that transformers gives them for Mistral 3."""
