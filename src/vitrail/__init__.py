"""Every public name of Vitrail and its home, which is imported on first use (PEP 562); nothing heavy."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# One table, home → names. `import vitrail` reads it and imports nothing of it.
_HOMES: dict[str, tuple[str, ...]] = {
    "auto": (
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        "AutoTokenizer",
    ),
    "configs": (
        "LlavaConfig",
        "Ministral3Config",
        "Mistral3Config",
        "MistralConfig",
        "PixtralVisionConfig",
        "PretrainedConfig",
    ),
    "configs.generation": ("GenerationConfig",),
    "errors": (
        "CacheFull",
        "CheckpointError",
        "ConfigError",
        "ContextError",
        "ImageError",
        "InputError",
        "MissingPackageError",
        "OutOfMemory",
        "PromptError",
        "UnsupportedError",
        "VitrailError",
    ),
    "generate.cache": ("KVCache",),
    "generate.stream": ("TextIteratorStreamer", "TextStreamer"),
    "inputs.batch": ("BatchFeature",),
    "inputs.grid": ("Grid", "image_grid", "image_tokens"),
    "inputs.image_processor": ("PixtralImageProcessor", "PixtralImageProcessorFast"),
    "inputs.images": ("load_image",),
    "inputs.mistral_tokenizer": ("MistralCommonTokenizer",),
    "inputs.processor": ("PixtralProcessor",),
    "model.vision": ("PixtralVisionModel",),
    "model.vlm": ("LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"),
    "pipelines": ("ImageTextToTextPipeline", "pipeline"),
}
_HOME_OF: dict[str, str] = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    """Import `name` from its home and keep it, so that the second look-up costs nothing."""
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'vitrail' has no attribute {name!r}")
    value = getattr(import_module(f"vitrail.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
