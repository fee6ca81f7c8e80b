"""TrainerMethods: methods called by the trainers of transformers, TRL, accelerate and PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from vitrail.arguments import short
from vitrail.errors import InputError, UnsupportedError

_CHECKPOINT_OPTIONS = ("preserve_rng_state", "context_fn")


class TrainerMethods:
    """Methods and attributes for trainers. `accepts_loss_kwargs`: forward() divides the loss by num_items_in_batch."""

    accepts_loss_kwargs: ClassVar[bool] = True
    _no_split_modules: ClassVar[tuple[str, ...]] = ("MistralDecoderLayer", "PixtralAttentionLayer")
    _keys_to_ignore_on_save: ClassVar[tuple[str, ...] | None] = None
    model_tags: list[str] | None = None

    def add_model_tags(self, tags: str | Sequence[str]) -> None:
        """Add to `model_tags`, the tags of a model card."""
        given = [tags] if isinstance(tags, str) else tags
        if not isinstance(given, Sequence) or not all(isinstance(tag, str) for tag in given):
            raise InputError(f"tags must be a text or a list of texts, got {short(tags)}.")
        for tag in given:
            if tag not in (self.model_tags or ()):
                self.model_tags = [*(self.model_tags or ()), tag]

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Return the number of positions of a batch. Raises InputError unless it maps names to tensors."""
        if not isinstance(input_dict, Mapping):
            raise InputError(f"a batch is a mapping of names to tensors, got {type(input_dict).__name__}.")
        given = input_dict.get(self.main_input_name)  # type: ignore[attr-defined]
        return int(given.numel()) if isinstance(given, Tensor) else 0

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Estimate the operations of a forward and backward pass: six per position and parameter (arXiv 2001.08361)."""
        parameters: int = self.num_parameters(exclude_embeddings=exclude_embeddings)  # type: ignore[attr-defined]
        return 6 * self.estimate_tokens(input_dict) * parameters

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of forward() for the next step of a custom decoding loop; generate() does not call this.

        `input_ids` are all ids so far; ids and positions already in the cache are left out. Images (pixel_values) and
        inputs_embeds are passed at the first step only.
        """
        _check_step(input_ids, past_key_values, attention_mask, inputs_embeds, cache_position)
        cached = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if cache_position is not None and len(cache_position):
            cached = int(cache_position[0])
        if cached and cached >= input_ids.shape[1] and inputs_embeds is None:
            raise InputError(
                f"the cache holds {cached} positions and input_ids no more: there is no new id to read."
            )
        first = inputs_embeds is not None and not cached
        if attention_mask is not None and kwargs.get("position_ids") is None:
            counted = attention_mask.long().cumsum(-1) - 1
            kwargs["position_ids"] = counted.masked_fill(attention_mask == 0, 1)
        # With inputs_embeds, input_ids holds only the ids generated since.
        ids = input_ids[:, -1:] if inputs_embeds is not None and cached else input_ids[:, cached:]
        new = inputs_embeds.shape[1] if inputs_embeds is not None and first else ids.shape[1]
        if kwargs.get("position_ids") is not None:
            kwargs["position_ids"] = kwargs["position_ids"][:, -new:]
        if cached:
            for name in ("pixel_values", "image_sizes"):
                kwargs.pop(name, None)
        return {
            "input_ids": None if first else ids,
            "inputs_embeds": inputs_embeds if first else None,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "cache_position": cache_position,
            **{name: value for name, value in kwargs.items() if value is not None},
        }


def _check_step(ids: Any, past: Any, *tensors: Any) -> None:
    """Raise InputError for arguments of prepare_inputs_for_generation of the wrong type."""
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        raise InputError("input_ids must be a tensor of the shape (batch, positions).")
    if past is not None and not callable(getattr(past, "get_seq_length", None)):
        raise InputError(
            f"past_key_values must be the cache that forward() returned, got {type(past).__name__}; give None at first."
        )
    if any(tensor is not None and not isinstance(tensor, Tensor) for tensor in tensors):
        raise InputError("attention_mask, inputs_embeds and cache_position must be tensors.")
    if tensors[0] is not None and tensors[0].dim() != 2:
        raise InputError("attention_mask must have the shape (batch, positions).")


def checkpoint_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Convert gradient_checkpointing_kwargs to options of torch.utils.checkpoint. Raises UnsupportedError."""
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"gradient_checkpointing_kwargs must be a dict, got {type(given).__name__}.")
    options = dict(given or {})
    if options.pop("use_reentrant", False):
        raise UnsupportedError(
            "gradient_checkpointing_kwargs use_reentrant=True is not supported; leave it out, gradients are the same."
        )
    unknown = [name for name in options if name not in _CHECKPOINT_OPTIONS]
    if unknown:
        raise UnsupportedError(
            f"gradient_checkpointing_kwargs does not know {', '.join(sorted(unknown))}; it takes use_reentrant and "
            f"{', '.join(_CHECKPOINT_OPTIONS)}."
        )
    return options


def per_item(total: Tensor, items: int | Tensor) -> Tensor:
    """Return a summed loss divided by num_items_in_batch. Raises InputError unless that is above 0."""
    single = not isinstance(items, Tensor) or items.numel() == 1
    if isinstance(items, bool) or not isinstance(items, (int, float, Tensor)) or not single or not items > 0:
        raise InputError(f"num_items_in_batch must be a number above 0, got {items!r:.100}.")
    return total / (items.to(total.device).reshape(()) if isinstance(items, Tensor) else items)
