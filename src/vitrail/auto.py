"""The Auto classes: from a checkpoint's folder to the right class; and `load`, its processor and model together."""

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
    """A checkpoint, given as a folder or by hub name; takes the hub's keywords and `format` out of `keywords`."""
    hub = HubOptions.take(keywords)
    return CheckpointFolder.open(name_or_path, hub, format=keywords.pop("format", None))


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

        With return_unused_kwargs=True, a tuple of it and of the keywords that are no keys of it; without, those raise.
        `format` "hf" or "mistral" chooses where a folder holds both; without it Hugging Face's comes first.

        Raises ConfigError for a model_type that is missing or unknown, CheckpointError for a missing file.
        """
        from vitrail.configs.published import read_config_folder
        from vitrail.configs.read import config_class

        place, hub = HubOptions.take(kwargs).entered(pretrained_model_name_or_path)
        config_dict = read_config_folder(place, hub, format=kwargs.pop("format", None))
        kind = config_class(config_dict.get("model_type"), str(place))
        return kind.named(kind.from_dict(config_dict, **kwargs), place)

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
        `fix_mistral_regex=True` repairs a tokenizer.json that cuts texts by a rule that is not Mistral's.
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
    """Chooses between PixtralImageProcessor (PIL) and PixtralImageProcessorFast (tensors)."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", *inputs: Any, **kwargs: Any
    ) -> Any:
        """The image processor that the files name; `use_fast` True or False chooses instead.

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
        "a checkpoint that reads images was expected."
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
        """A model with random weights; `dtype` (or `torch_dtype`), else the configuration's, chooses its numbers."""
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
                "Models that read images are loaded by AutoModelForImageTextToText."
            )
        return MistralForCausalLM


class AutoModelForVision2Seq(AutoModelForImageTextToText):
    """The older name of AutoModelForImageTextToText."""


class AutoModelForMultimodalLM(AutoModelForImageTextToText):
    """transformers 5's name of AutoModelForImageTextToText."""


class AutoModel(_AutoModel):
    """Chooses the model without its head: LlavaModel, Mistral3Model, MistralModel or PixtralVisionModel."""

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
    """The processor and the model of a folder or hub name, which is opened once: each of its files is read once.

    A model that reads text only has its tokenizer in the processor's place. `options` are those of the models'
    from_pretrained, with the hub's keywords, `format`, and AutoTokenizer's `tokenizer_mode` and `fix_mistral_regex`; a
    configuration that was read already is given as `config`. A folder that holds an adapter stands for its model, with
    the adapter on it.
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
    """The Auto class that loads a model of `config`, by whether it has a vision tower."""
    return AutoModelForImageTextToText if config.has_vision else AutoModelForCausalLM


def meta_model(config: "PretrainedConfig") -> Any:
    """The model that `config` describes, with modules and shapes but no values."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config, dtype=torch.float32)
