"""CausalModel and MistralForCausalLM: decoder and head, called with (B, T) or with packed rows. No images.

Letters: B conversations · T new positions · S cached + new · L packed rows · D width · V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrail.arguments import checked
from vitrail.configs import MistralConfig
from vitrail.errors import InputError
from vitrail.generate.loop import generate as draw
from vitrail.generate.transition_scores import compute_transition_scores
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import KVGeometry
from vitrail.model.decoder import MistralModel
from vitrail.model.layers import Linear
from vitrail.model.outputs import CausalLMOutputWithPast
from vitrail.model.packing import check_keep, check_labels, next_token_loss
from vitrail.model.padded import (
    PaddedModel,
    recorded,
    refuse_unknown,
    take_cache,
    take_repeated,
)
from vitrail.model.record import Record
from vitrail.ops import threads
from vitrail.ops.batch import ForwardBatch
from vitrail.ops.inputs import as_tensor, as_tensors, check_flags, replace_rows


class CausalModel(PaddedModel):
    """Base of models with a head: embed, step, and forward() from (B, T) to packed rows and back."""

    lm_head: nn.Module
    _tied_weights_keys: ClassVar[tuple[str, ...]] = ("lm_head.weight",)

    compute_transition_scores = compute_transition_scores
    generate = draw  # written against the model protocol; here it becomes a method

    @property
    def decoder(self) -> MistralModel:
        """The language model without its head."""
        raise NotImplementedError

    @property
    def text_config(self) -> MistralConfig:
        """Geometry of the decoder."""
        return self.decoder.config

    @property
    def kv_geometry(self) -> KVGeometry:
        """The key/value streams of a cache for this model."""
        return KVGeometry.of(self.text_config)

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return self.text_config.vocab_size

    @property
    def max_model_len(self) -> int:
        """Largest number of positions of a sequence."""
        return self.text_config.max_position_embeddings

    @property
    def image_token_id(self) -> int | None:
        """The id whose rows images replace; None for a text-only model."""
        return None

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        return self.decoder.get_input_embeddings()

    @checked
    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the head: text width → vocabulary."""
        return self.lm_head

    @checked
    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def get_decoder(self) -> MistralModel:
        """Return the language model without its head."""
        return self.decoder

    # --- packed rows --------------------------------------------------------------------------------------

    def encode_images(
        self, pixel_values: Tensor, image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None
    ) -> list[Tensor]:
        """Raise InputError: a text-only model takes no images."""
        raise InputError(
            f"{type(self).__name__} is a text-only model and cannot read images; load a vision checkpoint."
        )

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Embed ids (L,) → (L, D), with `features` (n, D) in the rows of image tokens, in order.

        Raises:
            InputError: different numbers of image tokens and features.
        """
        rows: Tensor = self.get_input_embeddings()(ids)
        if features is None:
            return rows
        if self.image_token_id is None:
            raise InputError(f"{type(self).__name__} is a text-only model and cannot read images.")
        return replace_rows(rows, ids == self.image_token_id, features)

    def first_values(self, rows: Tensor) -> Tensor:
        """Return the first block's values (L, G, K) of embeddings (L, D), to check which embeddings a cache holds."""
        return self.decoder.first_values(rows)

    def step(
        self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, capture: Record | None = None
    ) -> Tensor:
        """Run embeddings (L, D) → logits (n, V) of batch.logits_indices; write new keys and values to the cache."""
        last = self.decoder.run(hidden, batch, cache, Record() if capture is None else capture)
        wanted = batch.logits_indices
        rows = last if wanted is None else last[wanted]
        with threads.fitting(len(rows), self.text_config.hidden_size * self.text_config.vocab_size):
            logits: Tensor = self.lm_head(rows)
        return logits

    # --- (B, T) -------------------------------------------------------------------------------------------

    def _run(
        self,
        hidden: Tensor,
        *,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: "KVCache | Sequence[tuple[Tensor, Tensor]] | None",
        labels: Tensor | None,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        cache_position: Tensor | None,
        logits_to_keep: "int | Tensor",
        num_items_in_batch: "int | Tensor | None",
    ) -> dict[str, Any]:
        """Run embeddings (B, T, D) and return the fields of an output."""
        labels = as_tensor("labels", labels, hidden.device)
        if not isinstance(logits_to_keep, int):
            logits_to_keep = as_tensor("logits_to_keep", logits_to_keep)
        if labels is not None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
            raise InputError("labels need the logits of every position; leave logits_to_keep at 0.")
        self._check_embeddings(hidden)
        batch, new, _ = hidden.shape
        check_keep(logits_to_keep, new)
        if labels is not None:
            check_labels(labels, (batch, new), self.text_config.vocab_size)
        packed, record = self._pack(
            hidden,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )
        keep, places = packed.select(logits_to_keep)
        forward_batch = packed.forward_batch(keep)
        logits = packed.place(self.step(packed.gather(hidden), forward_batch, packed.cache, record), places)
        packed.keep_ids(input_ids, past_key_values)
        return {
            "loss": None
            if labels is None
            else next_token_loss(logits, labels, packed.kept, num_items_in_batch),
            "logits": logits,
            "past_key_values": packed.cache if self._wants_cache(use_cache) else None,
            **recorded(record),
        }


class MistralForCausalLM(CausalModel):
    """Mistral decoder with its head; text only."""

    config_class: ClassVar[type[MistralConfig]] = MistralConfig
    base_model_prefix: ClassVar[str] = "model"
    config: MistralConfig

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.model = MistralModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def decoder(self) -> MistralModel:
        """The language model without its head."""
        return self.model

    def set_decoder(self, decoder: MistralModel) -> None:
        """Replace the language model."""
        self.model = decoder

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: "KVCache | Sequence[tuple[Tensor, Tensor]] | None" = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: "int | Tensor" = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> "CausalLMOutputWithPast | tuple[Any, ...]":
        """Return logits of every position, as transformers' method; arguments as in vlm.py."""
        past_key_values = take_cache(kwargs, past_key_values)
        items = kwargs.pop("num_items_in_batch", None)
        take_repeated(kwargs, position_ids)
        refuse_unknown("MistralForCausalLM.forward", kwargs)
        check_flags(return_dict=return_dict)
        input_ids, inputs_embeds = as_tensors(self.device, input_ids=input_ids, inputs_embeds=inputs_embeds)
        fields = self._run(
            self._embeddings(input_ids, inputs_embeds),
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=items,
        )
        output = CausalLMOutputWithPast(**fields)
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()
