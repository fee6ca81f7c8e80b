"""CausalModel and MistralForCausalLM: decoder and head, called with (B, T) or with packed rows. No pictures.

Letters: B conversations · T new positions · S cached + new · L packed rows · D width · V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vitrail.arguments import checked
from vitrail.configs import MistralConfig
from vitrail.errors import ContextError, InputError, UnsupportedError
from vitrail.generate.loop import generate as draw
from vitrail.kv.cache import KVCache
from vitrail.kv.foreign import is_foreign, update_foreign
from vitrail.kv.geometry import KVGeometry
from vitrail.model.decoder import MistralModel
from vitrail.model.layers import Linear
from vitrail.model.outputs import CausalLMOutputWithPast
from vitrail.model.packing import Packed, check_keep, check_labels, next_token_loss, pack
from vitrail.model.pretrained import PreTrainedModel
from vitrail.model.record import Record
from vitrail.ops.batch import ForwardBatch
from vitrail.ops.inputs import as_tensor, as_tensors, check_flags, replace_rows


class CausalModel(PreTrainedModel):
    """What every model with a head does: embed, step, and forward()'s way from (B, T) to packed rows and back."""

    lm_head: nn.Module
    _tied_weights_keys: ClassVar[tuple[str, ...]] = ("lm_head.weight",)

    generate = draw  # the algorithm knows a protocol, not this class; here it becomes a method

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
        """The streams that a cache holds for this model."""
        return KVGeometry.of(self.text_config)

    @property
    def vocab_size(self) -> int:
        """V: ids are below it."""
        return self.text_config.vocab_size

    @property
    def max_model_len(self) -> int:
        """The most positions of a sequence."""
        return self.text_config.max_position_embeddings

    @property
    def image_token_id(self) -> int | None:
        """The id whose rows pictures replace; None for a text-only model."""
        return None

    def get_input_embeddings(self) -> nn.Module:
        """The table of token embeddings."""
        return self.decoder.get_input_embeddings()

    @checked
    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table of token embeddings."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The head: text width → vocabulary."""
        return self.lm_head

    @checked
    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def get_decoder(self) -> MistralModel:
        """The language model without its head."""
        return self.decoder

    # --- packed rows --------------------------------------------------------------------------------------

    def encode_images(
        self, pixel_values: Tensor, image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None
    ) -> list[Tensor]:
        """A text-only model has no pictures: always raises InputError."""
        raise InputError(
            f"{type(self).__name__} is a text-only model and cannot read pictures; load a vision checkpoint."
        )

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Ids (L,) → (L, D); rows of image tokens are replaced by `features` (n, D), in order.

        Raises:
            InputError: the numbers of image tokens and of features differ.
        """
        rows: Tensor = self.get_input_embeddings()(ids)
        if features is None:
            return rows
        if self.image_token_id is None:
            raise InputError(f"{type(self).__name__} is a text-only model and cannot read pictures.")
        return replace_rows(rows, ids == self.image_token_id, features)

    def step(
        self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, capture: Record | None = None
    ) -> Tensor:
        """Embeddings (L, D) → logits (n, V) of batch.logits_indices; new keys go into the cache."""
        last = self.decoder.run(hidden, batch, cache, Record() if capture is None else capture)
        wanted = batch.logits_indices
        logits: Tensor = self.lm_head(last if wanted is None else last[wanted])
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
    ) -> dict[str, Any]:
        """Embeddings (B, T, D) → the fields of an output."""
        attention_mask, position_ids, labels, cache_position = as_tensors(
            hidden.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            cache_position=cache_position,
        )
        if not isinstance(logits_to_keep, int):
            logits_to_keep = as_tensor("logits_to_keep", logits_to_keep)
        if hidden.dim() != 3:
            raise InputError(
                f"inputs_embeds must have the shape (batch, positions, width), got {tuple(hidden.shape)}."
            )
        if labels is not None and (isinstance(logits_to_keep, Tensor) or logits_to_keep):
            raise InputError("labels need the logits of every position; leave logits_to_keep at 0.")
        batch, new, width = hidden.shape
        if width != self.text_config.hidden_size:
            raise InputError(f"inputs_embeds are {width} wide, the model {self.text_config.hidden_size}.")
        check_keep(logits_to_keep, new)
        if labels is not None:
            check_labels(labels, (batch, new), self.text_config.vocab_size)
        packed = pack(
            batch,
            new,
            self.text_config,
            device=hidden.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            past=past_key_values,
            use_cache=self._wants_cache(use_cache),
            dtype=hidden.dtype,
        )
        config = self.config
        record = Record(
            hidden=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            weights=config.output_attentions if output_attentions is None else output_attentions,
        )
        keep, places = packed.select(logits_to_keep)
        forward_batch = packed.forward_batch(keep)
        rows = hidden.flatten(0, 1)
        rows = rows if len(packed.index) == len(rows) else rows[packed.index]
        logits = packed.place(self.step(rows, forward_batch, packed.cache, record), places)
        if input_ids is not None:
            packed.record_ids(input_ids)
        if packed.cache is not None and is_foreign(past_key_values):
            update_foreign(past_key_values, packed.cache)
        return {
            "loss": None if labels is None else next_token_loss(logits, labels, packed.kept),
            "logits": logits,
            "past_key_values": packed.cache if self._wants_cache(use_cache) else None,
            **self._recorded(packed, record),
        }

    def _recorded(self, packed: Packed, record: Record) -> dict[str, Any]:
        hidden_states = (
            tuple(packed.scatter(rows) for rows in record.hidden_states) if record.hidden else None
        )
        attentions = tuple(packed.scatter_weights(w) for w in record.attentions) if record.weights else None
        return {"hidden_states": hidden_states, "attentions": attentions}

    def _wants_cache(self, use_cache: bool | None) -> bool:
        if self.training and self.is_gradient_checkpointing:
            return False  # blocks are computed twice; a cache would be written twice
        return self.text_config.use_cache if use_cache is None else use_cache

    def _embeddings(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """(B, T, D) of ids (B, T), or as given; exactly one of the two."""
        if input_ids is not None and inputs_embeds is None:
            self._check_ids(input_ids)
            wide = input_ids if input_ids.dtype in (torch.int64, torch.int32) else input_ids.long()
            rows: Tensor = self.get_input_embeddings()(wide)
            return rows
        if inputs_embeds is not None and input_ids is None:
            return inputs_embeds
        raise InputError("give exactly one of input_ids and inputs_embeds.")

    def _check_ids(self, input_ids: Tensor) -> None:
        if input_ids.dim() != 2:
            raise InputError(
                f"input_ids must have the shape (batch, positions), got {tuple(input_ids.shape)}."
            )
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise InputError(f"input_ids must be integers, got {input_ids.dtype}.")
        table: Any = self.get_input_embeddings()
        vocabulary = int(table.weight.shape[0])
        if input_ids.numel() and not input_ids.is_meta:
            lowest, highest = int(input_ids.min()), int(input_ids.max())
            if lowest < 0 or highest >= vocabulary:
                wrong = lowest if lowest < 0 else highest
                raise ContextError(
                    f"id {wrong} is outside the model's vocabulary of {vocabulary}; the tokenizer belongs to another model."
                )


def refuse_unknown(name: str, kwargs: dict[str, Any]) -> None:
    """Raise UnsupportedError for arguments that nobody reads."""
    if kwargs:
        raise UnsupportedError(f"{name} does not know the argument {', '.join(sorted(kwargs))}.")


class MistralForCausalLM(CausalModel):
    """The Mistral decoder with its head, for text alone."""

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
        """Logits of every position, as transformers' forward of the same name; arguments as in vlm.py."""
        refuse_unknown("MistralForCausalLM.forward", kwargs)
        check_flags(use_cache=use_cache, output_attentions=output_attentions, return_dict=return_dict)
        check_flags(output_hidden_states=output_hidden_states)
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
        )
        output = CausalLMOutputWithPast(**fields)
        as_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()
