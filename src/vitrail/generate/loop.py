"""generate() and stream_text(): from a caller's arguments to ids or text. The decoding loop is in decoding.py."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from torch import Tensor

from vitrail.arguments import check_methods, checked
from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError, UnsupportedError
from vitrail.generate.decoding import AllowedIds, Decoding, Processor
from vitrail.generate.options import fit_context, new_tokens, refuse_others, settle, take_newer_names
from vitrail.generate.outputs import GenerateOutput
from vitrail.generate.prompt import read_prompt
from vitrail.generate.protocol import GeneratingModel
from vitrail.generate.stopping import Criterion, Stopper, StopStrings
from vitrail.responses.text_pieces import Detokenizer, TextPieces


@checked
def generate(
    model: GeneratingModel,
    inputs: Any = None,
    generation_config: Any = None,
    logits_processor: "Sequence[Processor] | Processor | None" = None,
    stopping_criteria: "Sequence[Criterion] | Criterion | None" = None,
    prefix_allowed_tokens_fn: AllowedIds | None = None,
    synced_gpus: bool | None = None,
    assistant_model: Any = None,
    streamer: Any = None,
    negative_prompt_ids: Any = None,
    negative_prompt_attention_mask: Any = None,
    use_model_defaults: bool | None = None,
    custom_generate: Any = None,
    **kwargs: Any,
) -> "Tensor | GenerateOutput":
    """Generate completions for a batch of prompts. Arguments and their order are those of transformers 4.57.

    Padding (left, right or in between) is dropped before the model runs, so that a row's completion does not depend on the
    rest of the batch; with `seed` that also holds for sampled text.

    Args:
        model: its generation_config provides the options that are not passed.
        inputs: int (B, T) as a tensor, array or lists; the same as `input_ids`.
        generation_config: options; those at their default are taken from the model's.
        logits_processor: callables (input_ids (B, T), scores (B, V)) → scores, after penalties and before
            temperature. Rows that have ended have zero scores.
        stopping_criteria: callables (input_ids (B, T), scores or None) → bool (B,) or one bool.
        prefix_allowed_tokens_fn: (row, its ids (T,)) → ids allowed next.
        streamer: receives `put(ids)` for the prompt and every step, then `end()`.
        use_model_defaults: False takes only the special ids from the model's generation_config.
        kwargs: options by name (see GenerationConfig), input_ids, attention_mask, pixel_values, image_sizes,
            inputs_embeds, past_key_values (continued in place; the ids are the whole prompts, or the new ids alone
            with an attention_mask over cached and new positions or with cache_position), `tokenizer` (for stop_strings) and
            `progress` (called with positions done and positions in all during the prefill).
        synced_gpus, assistant_model, negative_prompt_ids, negative_prompt_attention_mask, custom_generate:
            not supported; only None or False is accepted.

    Returns:
        int64 (B · num_return_sequences, T + new): prompts with their completions, padded with pad_token_id; only the
        new ids for inputs_embeds without input_ids; a GenerateOutput for return_dict_in_generate.

    Raises:
        InputError: unusable inputs or keywords.
        ContextError: an id outside the vocabulary, or more positions than the model has.
        UnsupportedError: an option that Vitrail does not support.
    """
    if streamer is not None:
        check_methods("streamer", streamer, "put", "end")
    try:
        _refuse_replaced(model)
        refuse_others(
            {
                "synced_gpus": synced_gpus,
                "assistant_model": assistant_model,
                "negative_prompt_ids": negative_prompt_ids,
                "negative_prompt_attention_mask": negative_prompt_attention_mask,
                "custom_generate": custom_generate,
            }
        )
        take_newer_names(kwargs)
        config, rest = settle(
            model.generation_config, generation_config, kwargs, use_model_defaults=use_model_defaults
        )
        decoding = _prepare(
            model,
            inputs,
            config,
            rest,
            explicit=_asks_for_length(kwargs, generation_config),
            unset_length=kwargs.get("max_length") is None,
            processors=_many(logits_processor),
            criteria=_many(stopping_criteria),
            allowed_ids=prefix_allowed_tokens_fn,
        )
        if streamer is not None:
            streamer.put(decoding.ids.cpu())
        with closing(decoding.run()) as run:
            for column in run:
                if streamer is not None:
                    streamer.put(column.cpu())
    except BaseException as error:
        if hasattr(streamer, "fail"):
            streamer.fail(error)  # an iterator may be waiting for the next piece
        raise
    if streamer is not None:
        streamer.end()
    output = decoding.output()
    return output if config.return_dict_in_generate else output.sequences


def _refuse_replaced(model: GeneratingModel) -> None:
    """Raise UnsupportedError if another library replaced the model's prepare_inputs_for_generation."""
    own = getattr(model, "__dict__", {}).get("prepare_inputs_for_generation")
    if own is not None and getattr(own, "__self__", None) is not model:
        raise UnsupportedError(
            "generate() does not call prepare_inputs_for_generation, which was replaced on this model (PEFT's prompt and "
            "prefix tuning do so), and would leave the trained prompt out; use an adapter of another kind, such as LoRA."
        )


@checked
def stream_text(
    model: GeneratingModel,
    tokenizer: Detokenizer,
    inputs: Mapping[str, Any],
    *,
    skip_special_tokens: bool = True,
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> Iterator[str]:
    """Yield the completion of one prompt in pieces that never end inside a character; needs no thread.

    Closing the iterator ends the generation and frees its cache.

    Args:
        model: model protocol (protocol.py).
        tokenizer: decodes ids.
        inputs: the processor's output for one prompt.
        skip_special_tokens: leave special tokens out of the text.
        generation_config: as for generate().
        kwargs: options of generate().

    Raises:
        InputError: more than one row.
    """
    check_methods("model", model, "step", "embed")
    check_methods("tokenizer", tokenizer, "decode")
    kwargs = {**inputs, "tokenizer": tokenizer, **kwargs}
    config, rest = settle(model.generation_config, generation_config, kwargs)
    decoding = _prepare(
        model,
        None,
        config,
        rest,
        explicit=_asks_for_length(kwargs, generation_config),
        unset_length=kwargs.get("max_length") is None,
    )
    if len(decoding.ids) > 1:
        raise InputError(f"stream_text shows one row, got {len(decoding.ids)}; use generate() for a batch.")
    pieces = TextPieces(tokenizer, skip_special_tokens=skip_special_tokens)
    with closing(decoding.run()) as run:
        for column in run:
            if piece := pieces.add(column.tolist()):
                yield piece
        if piece := pieces.end():
            yield piece


def _prepare(
    model: GeneratingModel,
    inputs: Tensor | None,
    config: GenerationConfig,
    rest: Mapping[str, Any],
    *,
    explicit: bool,
    unset_length: bool,
    processors: Sequence[Processor] = (),
    criteria: Sequence[Criterion] = (),
    allowed_ids: AllowedIds | None = None,
) -> Decoding:
    """Check all arguments before the model runs."""
    prompt = read_prompt(model, inputs, rest, config)
    embeds_only = prompt.embeds is not None and prompt.ids.shape[1] == 0
    wanted = new_tokens(config, prompt.width, unset=unset_length and not embeds_only)
    limit = fit_context(max(prompt.lengths), wanted, model.max_model_len, explicit=explicit)
    strings = None
    if config.stop_texts:
        tokenizer = rest.get("tokenizer")
        if tokenizer is None:
            raise InputError("stop_strings need the tokenizer that makes text of ids; give tokenizer=.")
        check_methods("tokenizer", tokenizer, "decode")
        strings = StopStrings(config.stop_texts, tokenizer)
    stopper = Stopper(config.eos_token_ids, limit, config.max_time, strings, criteria)
    return Decoding(
        model,
        prompt,
        config,
        stopper,
        processors=processors,
        allowed_ids=allowed_ids,
        progress=rest.get("progress"),
    )


def _asks_for_length(kwargs: Mapping[str, Any], given: GenerationConfig | None) -> bool:
    """Return whether the caller, not the checkpoint, set the length of the completion."""
    if any(kwargs.get(name) is not None for name in ("max_new_tokens", "max_length")):
        return True
    return given is not None and given.max_new_tokens is not None


def _many(value: Any) -> list[Any]:
    """Return a list of callables from None, one or several."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
