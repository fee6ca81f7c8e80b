"""Reading of a quantization_config, whatever its type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from vitrail.errors import ConfigError, UnsupportedError
from vitrail.quant.bitsandbytes_config import BitsAndBytesConfig as BitsAndBytesConfig
from vitrail.quant.formats import FORMATS
from vitrail.quant.formats.base import StoredConfig
from vitrail.quant.quantize_config import QuantizeConfig

Quantization: TypeAlias = BitsAndBytesConfig | QuantizeConfig | StoredConfig


def read_quantization(value: Any) -> Quantization | None:
    """Parse `value`: a configuration object (transformers' too), the dict of a config.json, or None.

    Raises:
        UnsupportedError: any other quantisation method; the message names the supported ones.
    """
    if value is None or isinstance(value, (BitsAndBytesConfig, QuantizeConfig, StoredConfig)):
        return value
    if not isinstance(value, Mapping) and callable(getattr(value, "to_dict", None)):
        value = value.to_dict()
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"quantization_config must be a BitsAndBytesConfig, a QuantizeConfig or a dict, got {type(value).__name__}."
        )
    method = value.get(
        "quant_method", BitsAndBytesConfig.quant_method if _names_bitsandbytes(value) else None
    )
    if method == QuantizeConfig.quant_method:
        return QuantizeConfig.from_dict(value)
    if method == BitsAndBytesConfig.quant_method:
        config: BitsAndBytesConfig = BitsAndBytesConfig.from_dict(value)
        return config
    known: dict[str, list[str]] = {}
    for format in FORMATS.values():
        known.setdefault(format.method, []).append(format.name)
    if not isinstance(method, str) or method not in known:
        words = " and ".join(f"{method!r} ({', '.join(names)})" for method, names in known.items())
        raise UnsupportedError(
            f"quantization_config with quant_method {value.get('quant_method')!r:.80} is not supported; this version reads "
            f"{words}. Use the model's unquantised checkpoint instead."
        )
    return StoredConfig(value)


def _names_bitsandbytes(value: Mapping[str, Any]) -> bool:
    # Early files lack quant_method.
    return "load_in_4bit" in value or "load_in_8bit" in value
