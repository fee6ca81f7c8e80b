"""from_pretrained and save_pretrained of models: what ties configuration, files and model together."""

import os
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vitrail.adapters.files import base_of, load_adapter, save_adapter
from vitrail.adapters.model import configs
from vitrail.configs import PretrainedConfig, VisionLanguageConfig, read_config
from vitrail.configs.generation import GENERATION_CONFIG_NAME, GenerationConfig
from vitrail.configs.read import as_config
from vitrail.errors import CheckpointError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.keywords import refuse_unknown
from vitrail.model.protocol import Pretrained
from vitrail.ops.backends import check_backend
from vitrail.tokenizer.load import check_tokenizer
from vitrail.weights.load import load_into
from vitrail.weights.save import save

Model = TypeVar("Model", bound=Pretrained)

# What the models' from_pretrained reads beside the keys of the configuration, to name what may have been meant.
_KEYWORDS = (
    "attn_implementation", "cache_dir", "config", "device_map", "dtype", "force_download", "format", "local_files_only",
    "quantization_config", "revision", "subfolder", "token", "torch_dtype", "vision",
)  # fmt: skip

# All names of one thing here: attention is exact in each.
ATTENTION = (None, "sdpa", "eager")


def load_pretrained(
    cls: type[Model],
    name_or_path: "str | os.PathLike[str]",
    *,
    config: "PretrainedConfig | str | Path | None",
    hub: HubOptions,
    options: dict[str, Any],
) -> Model:
    """Build `cls` on the meta device and fill it from a checkpoint; see PreTrainedModel.from_pretrained.

    A folder that holds an adapter stands for the model that it belongs to, with the adapter on it.
    """
    name_or_path, hub = hub.entered(name_or_path)
    base = base_of(name_or_path)
    if base is not None:
        adapted = load_pretrained(cls, base, config=config, hub=hub, options=options)
        load_adapter(cast(nn.Module, adapted), name_or_path)
        return adapted
    options = dict(options)
    dtype = options.pop("dtype", None)
    torch_dtype = options.pop("torch_dtype", None)
    device_map = options.pop("device_map", None)
    quantization = options.pop("quantization_config", None)
    format = options.pop("format", None)
    vision = options.pop("vision", True)
    _check_attention(options.pop("attn_implementation", None))
    options.pop("low_cpu_mem_usage", None)  # always so here: tensors are streamed one by one
    check_backend()  # raise for an unusable VITRAIL_KERNELS before downloading
    folder = CheckpointFolder.open(name_or_path, hub, format=format)
    chosen = _overridden(_config_for(cls, folder, config), options)
    check_tokenizer(folder, chosen)
    folder.fetch_weights()  # after what is cheap was found to be right
    chosen.name_or_path = folder.name
    with torch.device("meta"):
        model = cls(chosen)
    if not vision and isinstance(chosen, VisionLanguageConfig):
        model.remove_vision()
    loaded = load_into(
        cast(nn.Module, model),
        folder,
        dtype=torch_dtype if dtype is None else dtype,
        device_map=device_map,
        quantization=quantization,
    )
    chosen.dtype = loaded
    if GENERATION_CONFIG_NAME in folder.files:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return cast(Model, cast(nn.Module, model).eval())


def save_pretrained(
    model: Pretrained, folder: Path, *, max_shard_size: "int | str", state_dict: "dict[str, Tensor] | None"
) -> None:
    """Write a model's configuration and weights, or its adapter; see PreTrainedModel.save_pretrained."""
    if not model.vision:
        raise UnsupportedError(
            f"this {type(model).__name__} was loaded with vision=False, so it is no whole checkpoint; load it with "
            "its tower, or load and save the language model as MistralForCausalLM."
        )
    module = cast(nn.Module, model)
    if configs(module):  # as in transformers: the base is where it was
        if state_dict is not None:
            raise UnsupportedError(
                "state_dict does not go with an adapter; merge_and_unload first, or save_adapter."
            )
        save_adapter(module, folder)
        return
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    # As in transformers: what generates says how, so that end ids and sampling settings are not lost.
    options = model.generation_config if hasattr(module, "generate") else None
    save(
        module,
        folder,
        max_shard_size=max_shard_size,
        state_dict=state_dict,
        generation_config=options,
    )


def _check_attention(name: str | None) -> None:
    if name not in ATTENTION:
        raise UnsupportedError(
            f"attn_implementation {name!r} is not supported; 'sdpa' and 'eager' are one here."
        )


def _overridden(config: PretrainedConfig, options: dict[str, Any]) -> PretrainedConfig:
    """The configuration with the keywords that are its keys over it; UnsupportedError for any other."""
    names = [name for name in (*vars(config), *options) if not name.startswith("_")]
    keys = [name for name in names if hasattr(config, name)]
    refuse_unknown("from_pretrained", options, [*keys, *_KEYWORDS], error=UnsupportedError)
    return type(config).from_dict(config.to_dict(), **options) if options else config


def _config_for(
    cls: type[Model], folder: CheckpointFolder, config: "PretrainedConfig | str | Path | None"
) -> PretrainedConfig:
    """The configuration given, or the folder's; of a vision-language folder the part that `cls` is built from."""
    if config is None or isinstance(config, (str, os.PathLike, CheckpointFolder)):
        chosen = read_config(folder if config is None else config)
    else:
        chosen = as_config(config)
    if isinstance(chosen, cls.config_class):
        return chosen
    if isinstance(chosen, VisionLanguageConfig):
        for part in (chosen.text_config, chosen.vision_config):
            if isinstance(part, cls.config_class):
                return part
    raise CheckpointError(
        f"{folder} holds a {chosen.model_type!r} model; {cls.__name__} is built from {cls.config_class.model_type!r}. "
        "AutoModelForImageTextToText and AutoModelForCausalLM choose the class by the checkpoint."
    )
