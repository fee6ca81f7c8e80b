"""The Auto classes: from a checkpoint's folder to the right class; and `load`, its processor and model together."""

import os
from typing import TYPE_CHECKING, Any

from vitrail.arguments import check, checked
from vitrail.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import KEYWORDS, HubOptions
from vitrail.files.layout import MISTRAL

if TYPE_CHECKING:
    from vitrail.configs import PretrainedConfig


_IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")


def _refuse_remote_code(owner: str, kwargs: dict[str, Any]) -> None:
    """Vitrail runs no code that comes with a checkpoint; so asking for it is an error."""
    for name in ("trust_remote_code", "code_revision"):
        if kwargs.pop(name, None):
            raise UnsupportedError(
                f"{owner}: {name} is not supported; Vitrail runs no code of a checkpoint. Leave it out."
            )


def _open(name_or_path: "str | os.PathLike[str]", keywords: dict[str, Any]) -> CheckpointFolder:
    """A checkpoint, given as a folder or by hub name; takes the hub's keywords and `format` out of `keywords`."""
    hub = HubOptions.take(keywords)
    return CheckpointFolder.open(name_or_path, hub, format=keywords.pop("format", None))


def _refuse_unknown(owner: str, kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise InputError(f"{owner} does not know {', '.join(sorted(kwargs))}; remove it.")


@checked
class _Auto:
    """What the Auto classes share: they choose a class and are never instantiated."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise InputError(
            f"{name} chooses a class and has no objects of its own; use {name}.from_pretrained(…)."
        )


@checked
class AutoConfig(_Auto):
    """Chooses the configuration class by the `model_type` of config.json."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **kwargs: Any
    ) -> "PretrainedConfig":
        """The configuration of a folder, file or hub name; further keywords override its keys.

        `format` "hf" or "mistral" chooses where a folder holds both; without it Hugging Face's comes first.

        Raises ConfigError for a model_type that is missing or unknown, CheckpointError for a missing file.
        """
        from vitrail.configs.published import read_config_folder
        from vitrail.configs.read import config_class

        _refuse_remote_code(cls.__name__, kwargs)
        hub = HubOptions.take(kwargs)
        config_dict = read_config_folder(
            pretrained_model_name_or_path, hub, format=kwargs.pop("format", None)
        )
        kind = config_class(config_dict.get("model_type"), str(pretrained_model_name_or_path))
        config = kind.from_dict(config_dict, **kwargs)
        config.name_or_path = str(pretrained_model_name_or_path)
        return config

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> "PretrainedConfig":
        """A configuration of the named type with default values, as given by `args` and `kwargs`."""
        from vitrail.configs.read import config_class

        return config_class(model_type, f"{cls.__name__}.for_model")(*args, **kwargs)


@checked
class AutoTokenizer(_Auto):
    """Loads the tokenizer that lies in a checkpoint's folder."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", *inputs: Any, **kwargs: Any
    ) -> Any:
        """The tokenizer of a folder or hub name; keywords such as `padding_side` override the files.

        tekken.json and *.model.v* come before tokenizer.json; `tokenizer_mode="hf"` turns that round.
        """
        from vitrail.configs.params import config_dict_of
        from vitrail.tokenizer.load import load_tokenizer

        _refuse_remote_code(cls.__name__, kwargs)
        if inputs:
            raise InputError(f"{cls.__name__}.from_pretrained takes one positional argument, the checkpoint.")
        if kwargs.pop("use_fast", True) is False:
            raise UnsupportedError(f"{cls.__name__}: use_fast=False is not supported; leave it out.")
        folder = _open(pretrained_model_name_or_path, kwargs)
        mode = kwargs.pop("tokenizer_mode", "auto")
        return load_tokenizer(folder, mode, config=config_dict_of(folder), **kwargs)


@checked
class AutoImageProcessor(_Auto):
    """Chooses between PixtralImageProcessor (PIL) and PixtralImageProcessorFast (tensors)."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", *inputs: Any, **kwargs: Any
    ) -> Any:
        """The image processor that the files name; `use_fast` True or False chooses instead.

        Other keywords override the settings of the files.
        """
        from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast

        _refuse_remote_code(cls.__name__, kwargs)
        if inputs:
            raise InputError(f"{cls.__name__}.from_pretrained takes one positional argument, the checkpoint.")
        folder = _open(pretrained_model_name_or_path, kwargs)
        if folder.layout == MISTRAL:
            from vitrail.configs.params import config_dict_of
            from vitrail.processor.load import image_processor_of

            own = image_processor_of(folder, config_dict_of(folder), kwargs.pop("use_fast", None))
            return type(own).from_dict(own.to_dict(), **kwargs)
        named = _image_processor_type(folder)
        if named not in ("PixtralImageProcessor", "PixtralImageProcessorPil", "PixtralImageProcessorFast"):
            raise ConfigError(
                f"{folder} names the image processor {named!r}; PixtralImageProcessor, PixtralImageProcessorPil or "
                "PixtralImageProcessorFast was expected."
            )
        fast = kwargs.pop("use_fast", None)
        chosen = named.endswith("Fast") if fast is None else bool(fast)
        kind = PixtralImageProcessorFast if chosen else PixtralImageProcessor
        return kind.from_pretrained(folder, **kwargs)


def _image_processor_type(folder: CheckpointFolder) -> str:
    """The class that preprocessor_config.json names, or the image_processor part of processor_config.json."""
    for name in _IMAGE_SETTINGS:
        if name not in folder.files:
            continue
        settings: Any = folder.json(name)
        if name == "processor_config.json" and isinstance(settings, dict):
            settings = settings.get("image_processor")
            if settings is None:
                continue
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{folder.path / name} must hold an object with the image processor's settings."
            )
        named = settings.get("image_processor_type", settings.get("feature_extractor_type"))
        if named is None:
            return "PixtralImageProcessor"
        return str(named).replace("FeatureExtractor", "ImageProcessor")
    raise CheckpointError(
        f"{folder} has no preprocessor_config.json, and no processor_config.json with an image_processor; "
        "a checkpoint that reads pictures was expected."
    )


@checked
class AutoProcessor(_Auto):
    """Loads the processor of a checkpoint: tokenizer and image processor together."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **kwargs: Any) -> Any:
        """The PixtralProcessor of a folder or hub name; the tokenizer of one that reads text only.

        `tokenizer_mode` and `format` as in AutoTokenizer and the models; other keywords as PixtralProcessor's.
        """
        from vitrail.configs.params import config_dict_of
        from vitrail.processor.processor import load_processor

        _refuse_remote_code(cls.__name__, kwargs)
        folder = _open(pretrained_model_name_or_path, kwargs)
        if "vision_config" not in config_dict_of(folder) and not folder.files & {*_IMAGE_SETTINGS}:
            return AutoTokenizer.from_pretrained(folder, **kwargs)
        return load_processor(folder, **kwargs)


@checked
class _AutoModel(_Auto):
    """What the two Auto classes of models share: the class is chosen by model_type."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def _class_for(cls, config: "PretrainedConfig") -> Any:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, *model_args: Any, **kwargs: Any) -> Any:
        """The model of a folder or hub name (first argument), loaded by the class that its model_type names.

        Keywords are those of the model's own from_pretrained (dtype, device_map, quantization_config, …).
        """
        _refuse_remote_code(cls.__name__, kwargs)
        name = kwargs.pop("pretrained_model_name_or_path", None)
        if name is None:
            if not model_args:
                raise InputError(f"{cls.__name__}.from_pretrained needs a checkpoint's folder or name.")
            name, *rest = model_args
            model_args = tuple(rest)
        check(f"{cls.__name__}.from_pretrained", "pretrained_model_name_or_path", name, str | os.PathLike)
        config = kwargs.pop("config", None)
        if isinstance(config, (str, os.PathLike)):
            given = {key: kwargs[key] for key in (*KEYWORDS, "format") if key in kwargs}
            config = AutoConfig.from_pretrained(config, **given)
        elif config is not None:
            from vitrail.configs.read import as_config

            config = as_config(config)
        if config is None:
            from vitrail.adapters.files import base_of

            base = base_of(name)
            folder = _open(name if base is None else base, kwargs)
            config = AutoConfig.from_pretrained(folder)
            model = cls._class_for(config).from_pretrained(folder, *model_args, config=config, **kwargs)
            if base is not None:
                model.load_adapter(name)
            return model
        return cls._class_for(config).from_pretrained(name, *model_args, config=config, **kwargs)

    @classmethod
    def from_config(cls, config: "PretrainedConfig", **kwargs: Any) -> Any:
        """A model with random weights; `dtype` (or `torch_dtype`) chooses its numbers."""
        from vitrail.configs.read import as_config

        config = as_config(config)
        _refuse_remote_code(cls.__name__, kwargs)
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        _refuse_unknown(f"{cls.__name__}.from_config", kwargs)
        return cls._class_for(config)._from_config(config, **({} if dtype is None else {"dtype": dtype}))


class AutoModelForImageTextToText(_AutoModel):
    """Chooses LlavaForConditionalGeneration (llava) or Mistral3ForConditionalGeneration (mistral3)."""

    @classmethod
    def _class_for(cls, config: "PretrainedConfig") -> Any:
        from vitrail.model.vlm import LlavaForConditionalGeneration, Mistral3ForConditionalGeneration

        kinds = {"llava": LlavaForConditionalGeneration, "mistral3": Mistral3ForConditionalGeneration}
        kind = type(config).model_type
        if kind not in kinds:
            raise ConfigError(
                f"{cls.__name__} loads {' and '.join(kinds)}; this checkpoint is {kind!r}. "
                "Models that read text only are loaded by AutoModelForCausalLM."
            )
        return kinds[kind]


class AutoModelForCausalLM(_AutoModel):
    """Chooses MistralForCausalLM (mistral and ministral3: models that read text only)."""

    @classmethod
    def _class_for(cls, config: "PretrainedConfig") -> Any:
        from vitrail.model.causal import MistralForCausalLM

        kind = type(config).model_type
        if kind not in ("mistral", "ministral3"):
            raise ConfigError(
                f"{cls.__name__} loads mistral and ministral3; this checkpoint is {kind!r}. "
                "Models that read pictures are loaded by AutoModelForImageTextToText."
            )
        return MistralForCausalLM


def load(
    name_or_path: "str | os.PathLike[str]", *, config: "PretrainedConfig | None" = None, **options: Any
) -> tuple[Any, Any]:
    """The processor and the model of a folder or hub name, which is opened once: each of its files is read once.

    A model that reads text only has its tokenizer in the processor's place. `options` are those of the models'
    from_pretrained, with the hub's keywords, `format`, and `tokenizer_mode` as in AutoTokenizer; a configuration that was
    read already is given as `config`. A folder that holds an adapter stands for its model, with the adapter on it.
    """
    from vitrail.adapters.files import base_of

    base = base_of(name_or_path)
    folder = _open(name_or_path if base is None else base, options)
    processor = AutoProcessor.from_pretrained(folder, tokenizer_mode=options.pop("tokenizer_mode", "auto"))
    config = AutoConfig.from_pretrained(folder) if config is None else config
    model = auto_class(config).from_pretrained(folder, config=config, **options)
    if base is not None:
        model.load_adapter(name_or_path)
    return processor, model


def auto_class(config: "PretrainedConfig") -> type[_AutoModel]:
    """The Auto class that loads a model of `config`, by whether it has a vision tower."""
    return AutoModelForImageTextToText if config.has_vision else AutoModelForCausalLM


def meta_model(config: "PretrainedConfig") -> Any:
    """The model that `config` describes, with modules and shapes but no values."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config)
