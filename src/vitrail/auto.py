"""Auto classes: choice of the class for a checkpoint; and `load`, processor and model together."""

import os
from typing import TYPE_CHECKING, Any

from vitrail.arguments import check, checked
from vitrail.errors import CheckpointError, ConfigError, InputError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions, ignore_remote_code
from vitrail.files.keywords import refuse_unknown
from vitrail.files.layout import MISTRAL

if TYPE_CHECKING:
    from vitrail.configs import PretrainedConfig


_IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")


def _open(name_or_path: "str | os.PathLike[str]", keywords: dict[str, Any]) -> CheckpointFolder:
    """Open a folder or hub name; take the hub's keywords and `format` out of `keywords`."""
    hub = HubOptions.take(keywords)
    return CheckpointFolder.open(name_or_path, hub, format=keywords.pop("format", None))


@checked
class _Auto:
    """Base of the Auto classes, which are never instantiated."""

    def __init__(self) -> None:
        name = type(self).__name__
        raise InputError(
            f"{name} chooses a class and has no objects of its own; use {name}.from_pretrained(…)."
        )


@checked
class AutoConfig(_Auto):
    """Choice of the configuration class by the `model_type` of config.json."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **kwargs: Any
    ) -> "PretrainedConfig":
        """Return the configuration of a folder, file or hub name.

        Args:
            pretrained_model_name_or_path: a folder, a file or a hub name.
            kwargs: values of the configuration's keys; the hub's keywords; `format`: "hf" (default) or "mistral" for a
                folder with both; return_unused_kwargs=True: return a tuple of the configuration and the unknown
                keywords, which raise otherwise.

        Raises:
            ConfigError: a model_type that is missing or unknown. CheckpointError: a missing file.
        """
        from vitrail.configs.published import read_config_folder
        from vitrail.configs.read import config_class

        place, hub = HubOptions.take(kwargs).entered(pretrained_model_name_or_path)
        config_dict = read_config_folder(place, hub, format=kwargs.pop("format", None))
        kind = config_class(config_dict.get("model_type"), str(place))
        return kind.named(kind.from_dict(config_dict, **kwargs), place)

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> "PretrainedConfig":
        """Return a configuration of the named type with default values, overridden by `args` and `kwargs`."""
        from vitrail.configs.read import config_class

        return config_class(model_type, f"{cls.__name__}.for_model")(*args, **kwargs)


@checked
class AutoTokenizer(_Auto):
    """Loader of a checkpoint's tokenizer."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", *inputs: Any, **kwargs: Any
    ) -> Any:
        """Return the tokenizer of a folder or hub name; keywords such as `padding_side` override the files.

        tekken.json and *.model.v* come before tokenizer.json, with `tokenizer_mode="hf"` after it.
        `fix_mistral_regex=True` repairs a tokenizer.json whose pre-tokenizer regex is not Mistral's.
        """
        from vitrail.configs.params import config_dict_of
        from vitrail.configs.read import as_config
        from vitrail.tokenizer.load import load_tokenizer

        if inputs:
            raise InputError(f"{cls.__name__}.from_pretrained takes one positional argument, the checkpoint.")
        folder = _open(pretrained_model_name_or_path, kwargs)
        mode, config = kwargs.pop("tokenizer_mode", "auto"), kwargs.pop("config", None)
        config = config_dict_of(folder) if config is None else as_config(config).to_dict()
        return load_tokenizer(folder, mode, config=config, **kwargs)


@checked
class AutoImageProcessor(_Auto):
    """Choice between PixtralImageProcessor (PIL) and PixtralImageProcessorFast (tensors)."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", *inputs: Any, **kwargs: Any
    ) -> Any:
        """Return the image processor named in the files, or the one chosen by `use_fast`.

        Other keywords override the settings of the files.
        """
        from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast

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
    """Return the class named in preprocessor_config.json or in image_processor of processor_config.json."""
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
        "a checkpoint that reads images was expected."
    )


@checked
class AutoProcessor(_Auto):
    """Loader of a checkpoint's processor: tokenizer and image processor together."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **kwargs: Any) -> Any:
        """Return the PixtralProcessor of a folder or hub name, or the tokenizer of a text-only one.

        `tokenizer_mode` and `format` as in AutoTokenizer and the models; other keywords as PixtralProcessor's.
        """
        from vitrail.configs.params import config_dict_of
        from vitrail.processor.processor import load_processor

        folder = _open(pretrained_model_name_or_path, kwargs)
        if "vision_config" not in config_dict_of(folder) and not folder.files & {*_IMAGE_SETTINGS}:
            return AutoTokenizer.from_pretrained(folder, **kwargs)
        return load_processor(folder, **kwargs)


@checked
class _AutoModel(_Auto):
    """Base of the Auto classes of models: choice of the class by model_type."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @classmethod
    def _class_for(cls, config: "PretrainedConfig") -> Any:
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, *model_args: Any, **kwargs: Any) -> Any:
        """Load the model of a folder or hub name (first argument) with the class of its model_type.

        Keywords are those of the model's own from_pretrained (dtype, device_map, quantization_config, …).
        """
        hub = HubOptions.take(kwargs)
        name = kwargs.pop("pretrained_model_name_or_path", None)
        if name is None:
            if not model_args:
                raise InputError(f"{cls.__name__}.from_pretrained needs a checkpoint's folder or name.")
            name, *rest = model_args
            model_args = tuple(rest)
        check(f"{cls.__name__}.from_pretrained", "pretrained_model_name_or_path", name, str | os.PathLike)
        name, hub = hub.entered(name)
        config = kwargs.pop("config", None)
        if isinstance(config, (str, os.PathLike)):
            config = AutoConfig.from_pretrained(config, format=kwargs.get("format"), **hub.keywords())
        elif config is not None:
            from vitrail.configs.read import as_config

            config = as_config(config)
        if config is None:
            from vitrail.adapters.files import base_of

            base = base_of(name)
            format = kwargs.pop("format", None)
            folder = CheckpointFolder.open(name if base is None else base, hub, format=format)
            config = AutoConfig.from_pretrained(folder)
            model = cls._class_for(config).from_pretrained(folder, *model_args, config=config, **kwargs)
            if base is not None:
                model.load_adapter(name)
            return model
        given = {**hub.keywords(), **kwargs}
        return cls._class_for(config).from_pretrained(name, *model_args, config=config, **given)

    @classmethod
    def from_config(cls, config: "PretrainedConfig", **kwargs: Any) -> Any:
        """Return a model with random weights of `dtype` (or `torch_dtype`), default the configuration's."""
        from vitrail.configs.read import as_config

        config = as_config(config)
        ignore_remote_code(kwargs)
        given = {
            name: kwargs.pop(name)
            for name in ("dtype", "torch_dtype", "attn_implementation")
            if name in kwargs
        }
        refuse_unknown(f"{cls.__name__}.from_config", kwargs, ("dtype", "torch_dtype", "attn_implementation"))
        return cls._class_for(config)._from_config(config, **given)


class AutoModelForImageTextToText(_AutoModel):
    """Choice of LlavaForConditionalGeneration (llava) or Mistral3ForConditionalGeneration (mistral3)."""

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
    """Choice of MistralForCausalLM (mistral and ministral3: text-only models)."""

    @classmethod
    def _class_for(cls, config: "PretrainedConfig") -> Any:
        from vitrail.model.causal import MistralForCausalLM

        kind = type(config).model_type
        if kind not in ("mistral", "ministral3"):
            raise ConfigError(
                f"{cls.__name__} loads mistral and ministral3; this checkpoint is {kind!r}. "
                "Models that read images are loaded by AutoModelForImageTextToText."
            )
        return MistralForCausalLM


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """The older name of AutoModelForImageTextToText."""


class AutoModelForMultimodalLM(AutoModelForImageTextToText):
    """transformers 5's name of AutoModelForImageTextToText."""


class AutoModel(_AutoModel):
    """Choice of the model without its head: LlavaModel, Mistral3Model, MistralModel or PixtralVisionModel."""

    @classmethod
    def _class_for(cls, config: "PretrainedConfig") -> Any:
        from vitrail.model.decoder import MistralModel
        from vitrail.model.multimodal import LlavaModel, Mistral3Model
        from vitrail.model.vision import PixtralVisionModel

        kinds = {
            "llava": LlavaModel,
            "mistral3": Mistral3Model,
            "mistral": MistralModel,
            "ministral3": MistralModel,
            "pixtral": PixtralVisionModel,
        }
        return kinds[type(config).model_type]


def load(
    name_or_path: "str | os.PathLike[str]", *, config: "PretrainedConfig | None" = None, **options: Any
) -> tuple[Any, Any]:
    """Return the processor and the model of a folder or hub name, reading each of its files once.

    Args:
        name_or_path: a folder or a hub name; a folder with an adapter loads its base model with the adapter on it.
        config: the checkpoint's configuration if it was read already.
        options: of the models' from_pretrained, with the hub's keywords, `format`, and AutoTokenizer's
            `tokenizer_mode` and `fix_mistral_regex`.

    Returns:
        (processor, model); for a text-only model (tokenizer, model).
    """
    from vitrail.adapters.files import base_of

    name_or_path, hub = HubOptions.take(options).entered(name_or_path)
    base = base_of(name_or_path)
    format = options.pop("format", None)
    folder = CheckpointFolder.open(name_or_path if base is None else base, hub, format=format)
    given = {name: options.pop(name) for name in ("tokenizer_mode", "fix_mistral_regex") if name in options}
    processor = AutoProcessor.from_pretrained(folder, **given)
    config = AutoConfig.from_pretrained(folder) if config is None else config
    model = auto_class(config).from_pretrained(folder, config=config, **options)
    if base is not None:
        model.load_adapter(name_or_path)
    return processor, model


def auto_class(config: "PretrainedConfig") -> type[_AutoModel]:
    """Return the Auto class for `config`, by whether it has a vision tower."""
    return AutoModelForImageTextToText if config.has_vision else AutoModelForCausalLM


def meta_model(config: "PretrainedConfig") -> Any:
    """Return the model of `config` on the meta device: modules and shapes without values."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config, dtype=torch.float32)
