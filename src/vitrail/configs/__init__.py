"""Configurations: geometry of towers and decoders, and the options of generation. No tensors, no torch at import."""

from vitrail.configs.base import PretrainedConfig
from vitrail.configs.read import CONFIG_TYPES, read_config
from vitrail.configs.text import Ministral3Config, MistralConfig
from vitrail.configs.vision import PixtralVisionConfig
from vitrail.configs.vlm import LlavaConfig, Mistral3Config, VisionLanguageConfig

__all__ = [
    "CONFIG_TYPES",
    "LlavaConfig",
    "Ministral3Config",
    "Mistral3Config",
    "MistralConfig",
    "PixtralVisionConfig",
    "PretrainedConfig",
    "VisionLanguageConfig",
    "read_config",
]
