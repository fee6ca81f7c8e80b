"""Names of generation options: supported, refused or without effect. GenerationConfig holds their values."""

import difflib
from collections.abc import Mapping
from typing import Any

from vitrail.errors import InputError

# Supported options of transformers 4.57 and their defaults; `seed` and `cache_dtype` are Vitrail's own.
DEFAULTS: dict[str, Any] = {
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "max_time": None,
    "stop_strings": None,
    "do_sample": False,
    "seed": None,
    "use_cache": True,
    "prefill_chunk_size": None,
    "cache_dtype": None,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_return_sequences": 1,
    "output_scores": False,
    "output_logits": None,
    "return_dict_in_generate": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}

# Options whose default means "off"; generate() refuses any other value, which would change the text.
REFUSED: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "constraints": None,
    "force_words_ids": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "token_healing": False,
    "guidance_scale": None,
    "watermarking_config": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "decoder_start_token_id": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "is_assistant": False,
    "cache_implementation": None,
    "cache_config": None,
    "return_legacy_cache": None,
    "low_memory": None,
}

# Options of transformers 5 that would change the text; a file may hold them.
REFUSED_IN_FILES = ("top_h", "use_mtp", "speculation_type")

# Options of refused ones (beams, assistants) or of a compiler: kept, without effect.
INERT: dict[str, Any] = {
    "early_stopping": False,
    "length_penalty": 1.0,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "max_matching_ngram_size": None,
    "disable_compile": False,
}

# Element types of a cache; int8 is 8 bits and a scale per position and head.
CACHE_DTYPES = ("float32", "bfloat16", "float16", "int8")

# transformers' caches with the same contents as Vitrail's.
SAME_CACHES = (None, "dynamic", "static")

KNOWN: dict[str, Any] = DEFAULTS | REFUSED | INERT


def refuse_unknown(names: Mapping[str, Any], *, owner: str, also: tuple[str, ...] = ()) -> None:
    """Raise InputError for the first of `names` that is no generation option, with similar names."""
    known = [*KNOWN, "transformers_version", "_from_model_config", *also]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [word for word in known if not word.startswith("_")], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise InputError(f"{owner} does not know the argument {name!r}{hint}")
