"""BitsAndBytesConfig: configuration of bitsandbytes' formats, in Python and in a config.json."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vitrail.arguments import checked_except, short
from vitrail.errors import ConfigError, UnsupportedError
from vitrail.files.json import json_text, shown_json
from vitrail.files.writing import write_text

_STORAGE = ("float16", "float32", "int8", "uint8", "float64", "bfloat16")
_COMPUTE = ("float16", "bfloat16", "float32", "float64")
# Keys written by to_dict() for other readers, redundant for the constructor.
_ECHOES = ("quant_method", "_load_in_8bit", "_load_in_4bit")


@checked_except("__init__", "from_dict")
class BitsAndBytesConfig:
    """Quantisation while loading to 4 bits (NF4 or FP4) or 8 bits, as bitsandbytes stores them.

    Arguments, defaults and written keys are those of transformers 4.57. bitsandbytes is not needed.

    Args:
        load_in_8bit, load_in_4bit: choose the width.
        llm_int8_threshold: kept and written; activations are not quantised here, so there are no outlier columns.
        llm_int8_skip_modules: names or paths of modules that stay unquantised. If given, lm_head is quantised too unless
            listed (as in transformers).
        llm_int8_enable_fp32_cpu_offload: kept and written; layers may be on any device anyway.
        llm_int8_has_fp16_weight: not supported if true.
        bnb_4bit_compute_dtype: dtype of products with 4-bit layers (default float32).
        bnb_4bit_quant_type: "fp4" (default) or "nf4".
        bnb_4bit_use_double_quant: quantise the scales too.
        bnb_4bit_quant_storage: dtype in which packed bytes are saved (default uint8).

    Raises:
        ConfigError: an invalid, contradictory or unknown argument.
    """

    quant_method = "bitsandbytes"

    def __init__(
        self,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        llm_int8_threshold: float = 6.0,
        llm_int8_skip_modules: list[str] | None = None,
        llm_int8_enable_fp32_cpu_offload: bool = False,
        llm_int8_has_fp16_weight: bool = False,
        bnb_4bit_compute_dtype: torch.dtype | str | None = None,
        bnb_4bit_quant_type: str = "fp4",
        bnb_4bit_use_double_quant: bool = False,
        bnb_4bit_quant_storage: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> None:
        unknown = sorted(name for name in kwargs if name not in _ECHOES)
        if unknown:
            raise ConfigError(f"BitsAndBytesConfig does not know {', '.join(unknown)}.")
        self.load_in_8bit = load_in_8bit
        self.load_in_4bit = load_in_4bit
        self.llm_int8_threshold = llm_int8_threshold
        self.llm_int8_skip_modules = llm_int8_skip_modules
        self.llm_int8_enable_fp32_cpu_offload = llm_int8_enable_fp32_cpu_offload
        self.llm_int8_has_fp16_weight = llm_int8_has_fp16_weight
        self.bnb_4bit_compute_dtype = _dtype(
            "bnb_4bit_compute_dtype", bnb_4bit_compute_dtype, torch.float32, _COMPUTE
        )
        self.bnb_4bit_quant_type = bnb_4bit_quant_type
        self.bnb_4bit_use_double_quant = bnb_4bit_use_double_quant
        self.bnb_4bit_quant_storage = _dtype(
            "bnb_4bit_quant_storage", bnb_4bit_quant_storage, torch.uint8, _STORAGE
        )
        self.post_init()

    def post_init(self) -> None:
        """Check every value; raise ConfigError naming the invalid one."""
        for name in (
            "load_in_8bit",
            "load_in_4bit",
            "llm_int8_enable_fp32_cpu_offload",
            "llm_int8_has_fp16_weight",
            "bnb_4bit_use_double_quant",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {short(getattr(self, name))}.")
        if self.load_in_4bit and self.load_in_8bit:
            raise ConfigError("load_in_4bit and load_in_8bit are both true; choose one.")
        if isinstance(self.llm_int8_threshold, bool) or not isinstance(self.llm_int8_threshold, (int, float)):
            raise ConfigError(f"llm_int8_threshold must be a number, got {short(self.llm_int8_threshold)}.")
        skip = self.llm_int8_skip_modules
        if skip is not None and not (isinstance(skip, list) and all(isinstance(name, str) for name in skip)):
            raise ConfigError(f"llm_int8_skip_modules must be a list of names, got {short(skip)}.")
        if self.bnb_4bit_quant_type not in ("fp4", "nf4"):
            raise ConfigError(
                f"bnb_4bit_quant_type must be 'fp4' or 'nf4', got {short(self.bnb_4bit_quant_type)}."
            )
        if self.llm_int8_has_fp16_weight:
            raise UnsupportedError(
                "llm_int8_has_fp16_weight is not supported: 8-bit layers keep 8-bit weights."
            )

    def is_quantizable(self) -> bool:
        """Return whether either width is enabled."""
        return self.load_in_8bit or self.load_in_4bit

    def quantization_method(self) -> str | None:
        """ "llm_int8", "fp4", "nf4" or None."""
        if self.load_in_8bit:
            return "llm_int8"
        return self.bnb_4bit_quant_type if self.load_in_4bit else None

    @property
    def title(self) -> str:
        """Name for messages."""
        return "int8" if self.load_in_8bit else self.bnb_4bit_quant_type.upper()

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Build from the quantization_config of a config.json; `kwargs` that are attributes override it.

        With `return_unused_kwargs` the pair (config, other keywords) is returned.
        """
        if not isinstance(config_dict, Mapping):
            raise ConfigError(f"a BitsAndBytesConfig is made of a dict, got {type(config_dict).__name__}.")
        config = cls(**copy.deepcopy(dict(config_dict)))
        unused = config.update(**kwargs)
        if return_unused_kwargs:
            return config, unused
        if unused:
            raise ConfigError(f"BitsAndBytesConfig does not know {', '.join(sorted(unused))}.")
        return config

    def update(self, **kwargs: Any) -> dict[str, Any]:
        """Set the given attributes, check them, and return the keywords that are not attributes."""
        known = {name: value for name, value in kwargs.items() if name in vars(self)}
        changed = type(self)(**{**vars(self), **known})
        vars(self).update(vars(changed))
        return {name: value for name, value in kwargs.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """Return every key as transformers writes it to config.json."""
        values = copy.deepcopy(vars(self))
        for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
            values[name] = str(values[name]).removeprefix("torch.")
        echoes = {"_load_in_8bit": self.load_in_8bit, "_load_in_4bit": self.load_in_4bit}
        return {"quant_method": self.quant_method, **echoes, **values}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the keys that differ from the defaults."""
        default = BitsAndBytesConfig().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != default[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return indented JSON with sorted keys: the difference from the defaults, or everything."""
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json_text(values, "the BitsAndBytesConfig")

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Write every key to a JSON file."""
        write_text(Path(json_file_path), self.to_json_string(use_diff=False))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Iterate over (attribute, value), so that dict(config) works."""
        return iter(copy.deepcopy(vars(self)).items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BitsAndBytesConfig) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # mutable: equality is by content

    def __repr__(self) -> str:
        return f"{type(self).__name__} {shown_json(self.to_dict())}"


def _dtype(
    name: str, value: torch.dtype | str | None, default: torch.dtype, allowed: tuple[str, ...]
) -> torch.dtype:
    if value is None:
        return default
    word = str(value).removeprefix("torch.") if isinstance(value, (str, torch.dtype)) else None
    if word not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {short(value)}.")
    dtype: torch.dtype = getattr(torch, word)
    return dtype
