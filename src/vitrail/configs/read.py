"""The configuration class of a model_type, and the configuration of a folder."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.arguments import short
from vitrail.configs.base import PretrainedConfig
from vitrail.configs.published import read_config_folder
from vitrail.configs.text import Ministral3Config, MistralConfig
from vitrail.configs.vision import PixtralVisionConfig
from vitrail.configs.vlm import LlavaConfig, Mistral3Config
from vitrail.errors import ConfigError
from vitrail.files.layout import CONFIG_NAME

CONFIG_TYPES: dict[str, type[PretrainedConfig]] = {
    "llava": LlavaConfig,
    "mistral3": Mistral3Config,
    "mistral": MistralConfig,
    "ministral3": Ministral3Config,
    "pixtral": PixtralVisionConfig,
}


def config_class(model_type: Any, where: str) -> type[PretrainedConfig]:
    """Return the configuration class of a model_type; ConfigError names the supported ones."""
    if model_type is None:
        raise ConfigError(f"{where} has no model_type; one of {', '.join(CONFIG_TYPES)} was expected.")
    if not isinstance(model_type, str) or model_type not in CONFIG_TYPES:
        raise ConfigError(
            f"{where} has model_type {short(model_type)}; supported: {', '.join(CONFIG_TYPES)}."
        )
    return CONFIG_TYPES[model_type]


def as_config(value: Any) -> PretrainedConfig:
    """Return a Vitrail configuration as it is; convert transformers' or a dict. ConfigError for anything else."""
    if isinstance(value, PretrainedConfig):
        return value
    write = getattr(value, "to_json_string", None)
    keys = json.loads(write()) if callable(write) else value  # the content of its config.json
    if not isinstance(keys, Mapping):
        raise ConfigError(f"config must be a configuration, a dict or a path, got {type(value).__name__}.")
    return config_class(keys.get("model_type"), "config").from_dict(keys)


def read_config(
    folder: "str | os.PathLike[str]", format: str | None = None, **overrides: Any
) -> PretrainedConfig:
    """Read the configuration of a checkpoint's folder, its class chosen by model_type; `format` as in published.py."""
    config_dict = read_config_folder(folder, format=format)
    cls = config_class(config_dict.get("model_type"), str(Path(folder) / CONFIG_NAME))
    config = cls.from_dict(config_dict, **overrides)
    config.name_or_path = str(folder)
    return config
