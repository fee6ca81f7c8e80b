"""GenerationConfig: lengths, sampling and stops, and generation_config.json. Sampling itself is in generate/."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.arguments import checked_except, short
from vitrail.configs.base import PretrainedConfig
from vitrail.configs.fields import LIST_LIMIT, check_field
from vitrail.configs.generation_options import (
    CACHE_DTYPES,
    KNOWN,
    REFUSED,
    REFUSED_IN_FILES,
    SAME_CACHES,
    refuse_unknown,
)
from vitrail.errors import CheckpointError, ConfigError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.json import json_text, read_json, shown_json
from vitrail.files.keywords import is_secret, without_secrets
from vitrail.files.layout import CONFIG_NAME, PARAMS_NAME
from vitrail.files.writing import prepare_folder, write_text

GENERATION_CONFIG_NAME = "generation_config.json"
MOST_COMPLETIONS = 65536  # of one prompt


@checked_except("from_dict")
class GenerationConfig:
    """Options of generation: lengths, sampling, stops, special ids. Names and defaults follow transformers 4.57.

    Every option of transformers can be read as an attribute. Unsupported options of a file are kept; `generate()`
    raises UnsupportedError with the names of those that would change the text.

    Args:
        max_length: positions of prompt and completion together; max_new_tokens takes precedence.
        max_new_tokens: ids of the completion.
        min_length, min_new_tokens: smallest number of ids before an end-of-sequence id.
        max_time: seconds after which no further id is sampled.
        stop_strings: a text, or several, that end a row when they appear; they stay in the text.
        do_sample: sample from the probabilities (True) or take the most probable id (False).
        seed: whole number below 2**64 that fixes the samples of every row; None uses torch's generator.
        temperature, top_k, top_p, min_p, repetition_penalty: shape the probabilities, in transformers' order.
        no_repeat_ngram_size: length of the n-grams that occur once per row, prompt included; 0 is off.
        num_return_sequences: completions per prompt.
        prefill_chunk_size: positions of the prompt per step (at most 2048, which is also the default).
        cache_dtype: precision of the cache, "float32", "bfloat16", "float16" or "int8"; None is the model's. A
            torch.dtype is kept as its name.
        eos_token_id: the id, or ids, that end a row. pad_token_id fills rows that ended early.
        return_dict_in_generate, output_scores, output_logits: what `generate()` returns beside the ids.

    Raises:
        InputError: an unknown option.
        ConfigError: a value of the wrong type or out of its range.
    """

    max_length: int
    max_new_tokens: int | None
    min_length: int | None
    min_new_tokens: int | None
    max_time: float | None
    stop_strings: str | list[str] | None
    do_sample: bool
    seed: int | list[int] | None
    use_cache: bool
    prefill_chunk_size: int | None
    cache_dtype: str | None
    cache_implementation: str | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    num_return_sequences: int
    output_scores: bool
    output_logits: bool | None
    return_dict_in_generate: bool
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None

    def __init__(self, **kwargs: Any) -> None:
        refuse_unknown(kwargs, owner="GenerationConfig")
        self._fill(kwargs)

    def _fill(self, values: Mapping[str, Any]) -> None:
        for name, value in {**KNOWN, **without_secrets(values)}.items():
            if hasattr(type(self), name):  # a method, hidden by a value
                raise ConfigError(
                    f"GenerationConfig: {name!r} cannot be a key of a configuration; remove it."
                )
            setattr(self, name, _plain(name, value))
        self.validate()

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> "GenerationConfig":
        """Make one from a mapping; `kwargs` take precedence. Unknown keys are kept and written back."""
        if not isinstance(config_dict, Mapping):
            raise ConfigError(
                f"GenerationConfig expects an object of keys, got {type(config_dict).__name__}."
            )
        refuse_unknown(kwargs, owner="GenerationConfig")
        config = cls.__new__(cls)
        config._fill({**config_dict, **kwargs})
        return config

    @classmethod
    def from_model_config(cls, model_config: PretrainedConfig) -> "GenerationConfig":
        """Return the special ids (and legacy options) of a model's config.json, outer keys before text_config's."""
        found: dict[str, Any] = {}
        for part in (model_config.get_text_config(), model_config):
            # There, `output_attentions` and the like are options of forward(), not of generation.
            held = {name: value for name, value in vars(part).items() if not name.startswith("output_")}
            found |= {name: value for name, value in held.items() if name in KNOWN and value is not None}
        return cls.from_dict({**found, "_from_model_config": True})

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: "str | os.PathLike[str]",
        config_file_name: "str | Path | None" = None,
        cache_dir: "str | Path | None" = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: "str | bool | None" = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> "GenerationConfig":
        """Read generation_config.json of a folder or hub name; without one, the special ids of its configuration.

        `format` "hf" or "mistral" chooses the configuration where both exist.

        Raises:
            CheckpointError: a named file is missing, or both files are.
            ConfigError: a value out of its range.
        """
        hub = HubOptions.take(
            kwargs,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        folder = CheckpointFolder.open(pretrained_model_name, hub, format=kwargs.pop("format", None))
        name = str(config_file_name or GENERATION_CONFIG_NAME)
        path = folder.path / name
        if name in folder.files or path.is_file():
            return cls.from_dict(read_json(path), **kwargs)
        if config_file_name is not None or not {CONFIG_NAME, PARAMS_NAME} & folder.files:
            raise CheckpointError(
                f"{path} is not there, and neither is a config.json or params.json with the special ids to use."
            )
        from vitrail.configs.read import read_config

        return cls.from_dict(cls.from_model_config(read_config(folder)).to_dict(), **kwargs)

    def save_pretrained(
        self,
        save_directory: "str | Path",
        config_file_name: "str | Path | None" = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write generation_config.json (what differs from the defaults) into a folder, made if missing."""
        if push_to_hub or kwargs:
            names = ", ".join([*(["push_to_hub"] if push_to_hub else []), *sorted(kwargs)])
            raise UnsupportedError(f"save_pretrained of a GenerationConfig does not support {names}.")
        name, text = str(config_file_name or GENERATION_CONFIG_NAME), self.to_json_string()
        if Path(name).name != name:
            raise ConfigError(f"config_file_name is the name of a file, without a folder; got {name!r:.100}.")
        if Path(save_directory).is_file():
            raise ConfigError(f"{save_directory} is a file; save_pretrained needs a folder.")
        folder = prepare_folder(save_directory)
        write_text(folder / name, text)

    def to_dict(self) -> dict[str, Any]:
        """Return all options, unsupported and unknown ones included."""
        held = {name: copy.deepcopy(value) for name, value in sorted(vars(self).items())}
        return {name: value for name, value in held.items() if not is_secret(name)}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the options that differ from the defaults, and every unknown key."""
        return {
            name: value for name, value in self.to_dict().items() if name not in KNOWN or value != KNOWN[name]
        }

    def to_json_string(self, use_diff: bool = True, ignore_metadata: bool = False) -> str:
        """Return indented JSON with sorted keys: the differences from the defaults, or everything; `_…` is metadata."""
        held = self.to_diff_dict() if use_diff else self.to_dict()
        if ignore_metadata:
            held = {n: v for n, v in held.items() if not n.startswith("_") and n != "transformers_version"}
        held = {name: _with_text_keys(value) for name, value in held.items()}
        return json_text(held, "the GenerationConfig")

    def to_json_file(self, json_file_path: "str | Path", use_diff: bool = True) -> None:
        """Write `to_json_string()` to a file."""
        write_text(Path(json_file_path), self.to_json_string(use_diff))

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the options that exist (none if a value is wrong) and return the keywords that do not."""
        changed = copy.deepcopy(self)
        unused = {}
        for name, value in kwargs.items():
            if hasattr(self, name) and not hasattr(type(self), name):
                setattr(changed, name, _plain(name, value))
            else:
                unused[name] = value
        changed.validate()
        vars(self).update(vars(changed))
        return unused

    def get_generation_mode(self, assistant_model: Any = None) -> str:
        """Return "greedy_search" or "sample"; refuse any other of transformers' modes by name."""
        if assistant_model is not None:
            raise UnsupportedError("assistant_model is not supported; leave it out.")
        self.refuse_unsupported()
        return "sample" if self.do_sample else "greedy_search"

    # --- checks -------------------------------------------------------------------------------------------

    def validate(self, strict: bool = False) -> None:
        """Raise ConfigError, naming the option, for a value of the wrong type or out of its range; always `strict`."""
        none = type(None)
        for name in (
            "do_sample",
            "use_cache",
            "return_dict_in_generate",
            "output_scores",
            "max_length",
            "num_return_sequences",
        ):
            if getattr(self, name) is None:  # unset in transformers 5's files
                setattr(self, name, KNOWN[name])
        for name in ("do_sample", "use_cache", "return_dict_in_generate", "output_scores"):
            self._check(name, bool)
        for name, minimum in (("max_length", 0), ("num_return_sequences", 1)):
            self._check(name, int, minimum)
        if self.num_return_sequences > MOST_COMPLETIONS:
            raise ConfigError(
                f"num_return_sequences must be at most {MOST_COMPLETIONS}, got {short(self.num_return_sequences)}."
            )
        for name, minimum in (
            ("max_new_tokens", 1),
            ("min_length", 0),
            ("min_new_tokens", 0),
            ("top_k", 0),
            ("no_repeat_ngram_size", 0),
            ("prefill_chunk_size", 1),
        ):
            self._check(name, (int, none), minimum)
        for name in ("bos_token_id", "pad_token_id"):
            self._check(name, (int, none), -1)
        self._check("max_time", (int, float, none), 0)
        self._check("temperature", (int, float, none), 0)
        self._check("repetition_penalty", (int, float, none))
        for name in ("top_p", "min_p"):
            self._check(name, (int, float, none), 0)
            value = getattr(self, name)
            if value is not None and value > 1:
                raise ConfigError(f"{name} is a probability between 0 and 1, got {short(value)}.")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ConfigError(
                f"repetition_penalty must be above 0 (1.0 is none), got {short(self.repetition_penalty)}."
            )
        if self.cache_dtype is not None:
            self.cache_dtype = str(self.cache_dtype).removeprefix("torch.")
            if self.cache_dtype not in CACHE_DTYPES:
                raise ConfigError(
                    f"cache_dtype must be one of {', '.join(CACHE_DTYPES)}, got {short(self.cache_dtype)}."
                )
        self._check_lists()

    def _check(self, name: str, kind: type | tuple[type, ...], minimum: float | None = None) -> None:
        check_field("generation options", name, getattr(self, name), kind, minimum=minimum)

    def _check_lists(self) -> None:
        for name in ("eos_token_id", "stop_strings", "seed"):
            many = getattr(self, name)
            if isinstance(many, (list, tuple)) and len(many) > LIST_LIMIT:
                raise ConfigError(f"{name} has at most {LIST_LIMIT:,} entries, got {len(many):,}.")
        for ids, name in ((self.eos_token_ids, "eos_token_id"), (self.seeds, "seed")):
            if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
                raise ConfigError(
                    f"{name} must be a whole number or a list of them, got {short(getattr(self, name))}."
                )
        for number in self.eos_token_ids:
            check_field("generation options", "eos_token_id", number, int, minimum=-1)
        if any(not 0 <= item < 2**64 for item in self.seeds):
            raise ConfigError(f"seed must be at least 0 and below 2**64, got {short(self.seed)}.")
        if not all(isinstance(text, str) and text and _is_whole(text) for text in self.stop_texts):
            raise ConfigError(
                f"stop_strings must be a text or a list of texts, none empty; got {short(self.stop_strings)}."
            )

    def refuse_unsupported(self) -> None:
        """Raise UnsupportedError with the name of every option set to something that Vitrail does not implement."""
        wrong = {
            name: getattr(self, name) for name, default in REFUSED.items() if getattr(self, name) != default
        }
        held = vars(self)
        wrong |= {name: held[name] for name in REFUSED_IN_FILES if held.get(name)}
        if self.cache_implementation in SAME_CACHES:
            wrong.pop("cache_implementation", None)
        if wrong:
            listed = ", ".join(f"{name}={short(value)}" for name, value in sorted(wrong.items()))
            hint = "; cache_dtype='int8' makes a cache of 8 bits" if "cache_implementation" in wrong else ""
            raise UnsupportedError(
                f"generate() does not support {listed}; leave out what you do not need{hint}."
            )

    # --- views --------------------------------------------------------------------------------------------

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple: none, one or several."""
        return _many(self.eos_token_id)

    @property
    def seeds(self) -> tuple[int, ...]:
        """`seed` as a tuple: none, one for all prompts, or one per prompt."""
        return _many(self.seed)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """`stop_strings` as a tuple."""
        return _many(self.stop_strings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable: equality is by content

    def __repr__(self) -> str:
        return f"GenerationConfig {shown_json(self.to_diff_dict())}"


def _is_whole(text: str) -> bool:
    """Return whether a text has no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _plain(name: str, value: Any) -> Any:
    """Return a copy of an option, with numbers in a tensor or an array as plain ones (transformers takes such ids)."""
    try:
        return value.tolist() if hasattr(value, "tolist") else copy.deepcopy(value)
    except (
        TypeError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # files, generators, tensors without values
        reason = str(error).splitlines()[0][:100]
        raise ConfigError(f"{name} cannot be kept as an option ({reason}).") from None


def _with_text_keys(value: Any) -> Any:
    """Return a value with text as the keys of its dicts: sequence_bias has tuples of ids."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


def as_generation_config(value: Any) -> GenerationConfig:
    """Return a GenerationConfig as it is, or make one of transformers' own or of a dict."""
    if isinstance(value, GenerationConfig):
        return value
    if not isinstance(value, Mapping) and not hasattr(value, "to_dict"):
        raise ConfigError(
            f"generation_config must be a GenerationConfig or a dict, got {type(value).__name__}."
        )
    return GenerationConfig.from_dict(value if isinstance(value, Mapping) else value.to_dict())


def _many(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
