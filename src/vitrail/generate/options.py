"""Options of one generate() call: keywords override the given configuration, which overrides the model's."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

from vitrail.configs.generation import GenerationConfig
from vitrail.configs.generation_options import KNOWN, refuse_unknown
from vitrail.errors import ConfigError, ContextError, InputError, UnsupportedError

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "pixel_values",
    "image_sizes",
    "inputs_embeds",
    "past_key_values",
    "cache_position",
)
HELPERS = ("tokenizer", "progress")
SAMPLING_ONLY = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}


def settle(
    model_config: GenerationConfig,
    given: GenerationConfig | None,
    keywords: Mapping[str, Any],
    *,
    use_model_defaults: bool | None = None,
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Resolve the options of a call.

    Args:
        model_config: the model's generation_config.
        given: the caller's configuration, which overrides the model's wherever it differs from the defaults.
        keywords: of the call, which override both.
        use_model_defaults: False takes only the special ids from the model's configuration.

    Returns:
        The options, and the remaining keywords (model inputs, tokenizer, progress).

    Raises:
        InputError: an unknown keyword; the message names similar ones.
        UnsupportedError: an option that Vitrail does not support.
        ConfigError: a value out of range.
    """
    refuse_unknown(keywords, owner="generate()", also=MODEL_INPUTS + HELPERS)
    if given is None:
        config = copy.deepcopy(model_config)
    else:
        config = _given(model_config, given, use_model_defaults)
    config.update(**{name: value for name, value in keywords.items() if name in KNOWN})
    config.refuse_unsupported()
    _warn_about_idle(config, keywords)
    return config, {name: value for name, value in keywords.items() if name not in KNOWN}


def _given(
    model_config: GenerationConfig, given: GenerationConfig, use_model_defaults: bool | None
) -> GenerationConfig:
    if not hasattr(given, "to_dict"):
        raise ConfigError(f"generation_config must be a GenerationConfig, got {type(given).__name__}.")
    config = GenerationConfig.from_dict(given.to_dict())
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    for name, value in model_config.to_dict().items():
        if name.startswith("_") or name == "transformers_version":
            continue
        unset = getattr(config, name, None) == KNOWN.get(name)
        if unset and (use_model_defaults is not False or name in special):
            setattr(config, name, value)
    if config.temperature == 0:  # greedy decoding although the model's default is to sample
        config.do_sample = False
    return config


def _warn_about_idle(config: GenerationConfig, keywords: Mapping[str, Any]) -> None:
    """Warn if an argument of this call has no effect."""
    if not config.do_sample:
        idle = [name for name, off in SAMPLING_ONLY.items() if keywords.get(name, off) not in (off, None, 0)]
        if idle:
            warnings.warn(f"{', '.join(idle)} have no effect without do_sample=True.", stacklevel=5)
    if not config.return_dict_in_generate:
        idle = [name for name in ("output_scores", "output_logits") if keywords.get(name)]
        if idle:
            warnings.warn(
                f"{', '.join(idle)} have no effect without return_dict_in_generate=True.", stacklevel=5
            )
    if keywords.get("max_length") is not None and config.max_new_tokens is not None:
        warnings.warn("both max_new_tokens and max_length are set; max_new_tokens is used.", stacklevel=5)


def take_newer_names(keywords: dict[str, Any]) -> None:
    """Rename model inputs from transformers 5's names to Vitrail's."""
    cache = keywords.pop("cache", None)
    if cache is not None:
        if keywords.get("past_key_values") is not None:
            raise InputError("cache and past_key_values are one argument; give one of them.")
        keywords["past_key_values"] = cache
    if keywords.pop("mm_encoder_outputs", None) is not None:
        raise UnsupportedError(
            "generate() does not take mm_encoder_outputs; give pixel_values and image_sizes."
        )


def refuse_others(arguments: Mapping[str, Any]) -> None:
    """Raise UnsupportedError for arguments of transformers' generate() that are passed but not supported."""
    wrong = [name for name, value in arguments.items() if value is not None and value is not False]
    if wrong:
        raise UnsupportedError(f"generate() does not support {', '.join(wrong)}; leave it out.")


def new_tokens(config: GenerationConfig, width: int, *, unset: bool) -> int:
    """Return the number of new ids per row after a prompt of `width` positions (of the padded batch).

    `max_new_tokens`, else what `max_length` leaves; if neither is set (`unset`), the default of 20 means 20 new
    ids.

    Raises:
        InputError: the prompt alone reaches `max_length`.
    """
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if unset and config.max_length == KNOWN["max_length"]:
        return config.max_length
    if width >= config.max_length:
        raise InputError(
            f"the prompt has {width} positions and max_length is {config.max_length}, which counts the "
            "prompt; raise max_length or set max_new_tokens."
        )
    return config.max_length - width


def fit_context(longest: int, new: int, limit: int | None, *, explicit: bool) -> int:
    """Return `new`, or fewer if the caller did not ask for it and the model has fewer positions left.

    The last id is never read by the model, so it needs no position.

    Raises:
        ContextError: the prompt, or the prompt with the requested ids, exceeds the model's positions.
    """
    if limit is None or longest + new - 1 <= limit:
        return new
    largest = limit - longest + 1
    if longest > limit:
        raise ContextError(
            f"the prompt has {longest} positions, the model {limit}; shorten it or use fewer images."
        )
    if explicit:
        raise ContextError(
            f"a prompt of {longest} positions and {new} new ids need more than the model's {limit} "
            f"positions; set max_new_tokens to at most {largest}."
        )
    return largest
