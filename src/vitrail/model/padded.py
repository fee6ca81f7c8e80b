"""PaddedModel: checks, packing and recording of forward() calls with (B, T).

Letters: B conversations · T new positions · D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.configs import MistralConfig
from vitrail.errors import ContextError, InputError, UnsupportedError
from vitrail.kv.cache import KVCache
from vitrail.model.packing import Packed, joined, pack
from vitrail.model.pretrained import PreTrainedModel
from vitrail.model.record import Record
from vitrail.ops.inputs import as_tensors, check_flags

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


class PaddedModel(PreTrainedModel):
    """Base of decoders with transformers' forward(), with or without head and tower."""

    @property
    def text_config(self) -> MistralConfig:
        """Geometry of the decoder."""
        config: MistralConfig = self.config.get_text_config()
        return config

    def _pack(
        self,
        hidden: Tensor,
        *,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: "KVCache | Sequence[tuple[Tensor, Tensor]] | None",
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        cache_position: Tensor | None,
    ) -> tuple[Packed, Record]:
        """Return the packing of the embeddings (B, T, D) of one call, and its record."""
        check_flags(use_cache=use_cache, output_attentions=output_attentions)
        check_flags(output_hidden_states=output_hidden_states)
        attention_mask, position_ids, cache_position = as_tensors(
            hidden.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
        )
        packed = pack(
            hidden.shape[0],
            hidden.shape[1],
            self.text_config,
            device=hidden.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache_position=cache_position,
            past=past_key_values,
            use_cache=self._wants_cache(use_cache),
            dtype=hidden.dtype,
        )
        if use_cache and packed.cache is None and self._wants_cache(use_cache):
            raise InputError(
                "position_ids begin anew within a row, so that it holds several sequences, of which there is no cache; "
                "leave use_cache out, or pass an attention_mask for rows of one sequence."
            )
        config = self.config
        record = Record(
            hidden=config.output_hidden_states if output_hidden_states is None else output_hidden_states,
            weights=config.output_attentions if output_attentions is None else output_attentions,
            layout=packed,
        )
        return packed, record

    def _last_hidden(
        self, run: Callable[..., Tensor], hidden: Tensor, input_ids: Tensor | None, **given: Any
    ) -> dict[str, Any]:
        """Run embeddings (B, T, D) through a decoder's `run`; return the fields of an output without logits."""
        self._check_embeddings(hidden)
        packed, record = self._pack(hidden, **given)
        last = run(packed.gather(hidden), packed.forward_batch(None), packed.cache, record)
        packed.keep_ids(input_ids, given["past_key_values"])
        return {
            "last_hidden_state": record.hidden_states[-1] if record.hidden else packed.scatter(last),
            "past_key_values": packed.cache if self._wants_cache(given["use_cache"]) else None,
            **recorded(record),
        }

    def _check_embeddings(self, hidden: Tensor) -> None:
        if hidden.dim() != 3:
            raise InputError(
                f"inputs_embeds must have the shape (batch, positions, width), got {tuple(hidden.shape)}."
            )
        if hidden.shape[2] != self.text_config.hidden_size:
            raise InputError(
                f"inputs_embeds are {hidden.shape[2]} wide, the model {self.text_config.hidden_size}."
            )

    def _wants_cache(self, use_cache: bool | None) -> bool:
        if self.training and self.is_gradient_checkpointing:
            return False  # blocks are computed twice and would write a cache twice
        return self.text_config.use_cache if use_cache is None else use_cache

    def _embeddings(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Return embeddings (B, T, D) of ids (B, T), or the given ones; exactly one of the two."""
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


def recorded(record: Record) -> dict[str, Any]:
    """Return the fields of an output from a record."""
    return {
        "hidden_states": tuple(record.hidden_states) if record.hidden else None,
        "attentions": tuple(record.attentions) if record.weights else None,
    }


def refuse_unknown(name: str, kwargs: dict[str, Any]) -> None:
    """Raise UnsupportedError for unknown arguments; None is ignored, as PEFT passes it for some tasks."""
    if unknown := [key for key, value in kwargs.items() if value is not None]:
        raise UnsupportedError(f"{name} does not know the argument {', '.join(sorted(unknown))}.")


def take_repeated(kwargs: dict[str, Any], position_ids: Tensor | None) -> None:
    """Remove redundant arguments of trainers from `kwargs`: token types of 0, and starts of packed sequences.

    Raises:
        InputError: cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k or seq_idx that differ from position_ids.
    """
    types = kwargs.get("token_type_ids")
    if isinstance(types, Tensor) and not types.any():
        del kwargs["token_type_ids"]
    given = {name: kwargs.pop(name) for name in _PACKED if kwargs.get(name) is not None}
    if not given:
        return
    if not isinstance(position_ids, Tensor) or position_ids.shape[:-1] not in ((), (1,)):
        raise InputError(
            f"{', '.join(given)} need position_ids (1, positions) that begin anew with each sequence."
        )
    new = position_ids.shape[-1]
    lengths = torch.tensor(joined(position_ids, 1, new) or [new])
    ends = lengths.cumsum(0)
    expected: dict[str, list[int]] = {name: [0, *ends.tolist()] for name in _PACKED}
    expected |= {name: [int(lengths.max())] for name in ("max_length_q", "max_length_k")}
    expected["seq_idx"] = torch.arange(len(lengths)).repeat_interleave(lengths).tolist()
    for name, value in given.items():
        try:
            said = torch.as_tensor(value).flatten().tolist()
        except (TypeError, ValueError, RuntimeError):
            said = None
        if said != expected[name]:
            raise InputError(
                f"{name} and position_ids say different things of where the sequences of a row begin."
            )


def take_cache(kwargs: dict[str, Any], past_key_values: Any) -> Any:
    """Return the cache of a call: `past_key_values`, or transformers 5's `cache` out of `kwargs`."""
    cache = kwargs.pop("cache", None)
    if cache is None:
        return past_key_values
    if past_key_values is not None:
        raise InputError("cache and past_key_values are one argument; give one of them.")
    return cache
