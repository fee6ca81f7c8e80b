"""load_pretrained and save_pretrained: from_pretrained and save_pretrained of models."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from vitrail.adapters.files import base_of, load_adapter, save_adapter
from vitrail.adapters.model import configs
from vitrail.configs import PretrainedConfig, VisionLanguageConfig, read_config
from vitrail.configs.attention import check_attention
from vitrail.configs.fields import check_dtype
from vitrail.configs.generation import GENERATION_CONFIG_NAME, GenerationConfig, as_generation_config
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

# Keywords of from_pretrained beside the configuration's keys, for suggestions in errors.
_KEYWORDS = (
    "attn_implementation", "cache_dir", "config", "device_map", "dtype", "force_download", "format", "local_files_only",
    "quantization_config", "revision", "subfolder", "token", "torch_dtype", "vision",
)  # fmt: skip

# Other keywords of transformers' from_pretrained: accepted at values without effect, else refused.
NOT_DONE = [
    "adapter_kwargs",
    "adapter_name",
    "allow_all_kernels",
    "device_mesh",
    "disable_mmap",
    "distributed_config",
    "experts_implementation",
    "fusion_config",
    "gguf_file",
    "kernel_config",
    "key_mapping",
    "max_memory",
    "mirror",
    "offload_buffers",
    "offload_folder",
    "offload_state_dict",
    "output_loading_info",
    "proxies",
    "resume_download",
    "state_dict",
    "tp_plan",
    "tp_size",
    "tqdm_class",
    "use_kernels",
    "variant",
]


def load_pretrained(
    cls: type[Model],
    name_or_path: "str | os.PathLike[str]",
    *,
    config: "PretrainedConfig | str | Path | None",
    hub: HubOptions,
    options: dict[str, Any],
) -> Model:
    """Build `cls` on the meta device and load a checkpoint into it; see PreTrainedModel.from_pretrained.

    A folder with an adapter loads the adapter's base model with the adapter on it.
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
    check_attention(options.pop("attn_implementation", None))
    _check_bits(options)
    for name in ("load_in_4bit", "load_in_8bit"):
        options.pop(name, None)
    options.pop("low_cpu_mem_usage", None)  # no effect: tensors are always streamed one by one
    given = options.pop("generation_config", None)
    generation = None if given is None else as_generation_config(given)
    for name in NOT_DONE:
        if name in options and options[name] in (None, False, ""):
            del options[name]
    check_backend()  # raise for an unusable VITRAIL_KERNELS before downloading
    folder = CheckpointFolder.open(name_or_path, hub, format=format)
    chosen = _overridden(_config_for(cls, folder, config), options)
    check_tokenizer(folder, chosen)
    folder.fetch_weights()  # after the cheap checks
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
    _check_part_dtypes(options, loaded)
    _set_dtype(chosen, loaded)
    if generation is not None:
        model.generation_config = generation
    elif GENERATION_CONFIG_NAME in folder.files:
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
    if configs(module):  # as in transformers: the adapter alone, the base is saved already
        save_adapter(module, folder, state=state_dict)
        return
    model.config.architectures = [type(model).__name__]
    _set_dtype(model.config, model.dtype)
    # As in transformers: a generating model writes its generation config, which keeps end ids and sampling settings.
    options = model.generation_config if hasattr(module, "generate") else None
    save(
        module,
        folder,
        max_shard_size=max_shard_size,
        state_dict=state_dict,
        generation_config=options,
    )


def named_dtype(dtype: Any, torch_dtype: Any, config: PretrainedConfig) -> torch.dtype | None:
    """Return the torch.dtype given as object or name under either keyword, else the configuration's."""
    given = torch_dtype if dtype is None else dtype
    if given is None or given == "auto":
        return config.dtype
    found: torch.dtype = getattr(torch, check_dtype("from_config", given) or "")
    return found


def _check_bits(options: Mapping[str, Any]) -> None:
    """Refuse the older keywords of packing and name their replacement."""
    for name in ("load_in_4bit", "load_in_8bit"):
        if options.get(name):
            raise UnsupportedError(
                f"from_pretrained does not take {name}=True; give quantization_config=BitsAndBytesConfig({name}=True)."
            )


def _set_dtype(config: PretrainedConfig, dtype: torch.dtype) -> None:
    """Set the dtype of the configuration and its parts, as transformers does."""
    config.dtype = dtype
    for name in config.sub_configs:
        getattr(config, name).dtype = dtype


def _overridden(config: PretrainedConfig, options: dict[str, Any]) -> PretrainedConfig:
    """Return the configuration with keywords set over its keys. Raises UnsupportedError for other keywords."""
    names = [name for name in (*vars(config), *options) if not name.startswith("_")]
    keys = [name for name in names if hasattr(config, name)]
    refuse_unknown("from_pretrained", options, [*keys, *_KEYWORDS], error=UnsupportedError)
    return type(config).from_dict(config.to_dict(), **options) if options else config


def _config_for(
    cls: type[Model], folder: CheckpointFolder, config: "PretrainedConfig | str | Path | None"
) -> PretrainedConfig:
    """Return the given configuration or the folder's; of a vision-language one, the part of `cls`."""
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


def _check_part_dtypes(options: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Raise UnsupportedError for a part of the model with another dtype than the weights'."""
    for name, given in options.items():
        asked = {
            key: given[key]
            for key in ("dtype", "torch_dtype")
            if isinstance(given, Mapping) and given.get(key)
        }
        for key, value in asked.items():
            if check_dtype(name, value) != str(dtype).removeprefix("torch."):
                raise UnsupportedError(
                    f"{name}: {key} {str(value).removeprefix('torch.')} for one part of a model is not supported; the "
                    f"weights are {str(dtype).removeprefix('torch.')}, and dtype= gives all of them another type."
                )
