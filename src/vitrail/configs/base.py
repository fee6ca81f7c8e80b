"""PretrainedConfig: what every configuration can do (dict, JSON, folder). No geometry of any model lives here."""

import copy
import os
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vitrail.arguments import checked_except
from vitrail.configs.fields import check_field
from vitrail.configs.overrides import merge_overrides, warn_replaced
from vitrail.configs.published import read_config_file, read_config_folder
from vitrail.errors import ConfigError, UnsupportedError
from vitrail.files.hub_options import HubOptions
from vitrail.files.json import json_text, shown_json
from vitrail.files.layout import CONFIG_NAME
from vitrail.files.writing import prepare_folder, write_text

if TYPE_CHECKING:
    import torch

Self = TypeVar("Self", bound="PretrainedConfig")


@checked_except("from_dict")
class PretrainedConfig:
    """Base of all configurations: keeps unknown keys, round-trips through dict, JSON and folder.

    Every keyword that a class does not name is kept as an attribute and written back, so that nothing of a
    published config.json is lost. Names follow Hugging Face transformers 4.57.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    # What makes the nested configurations of these names, from an object of keys and the owner's name.
    part_makers: ClassVar[dict[str, Callable[..., "PretrainedConfig"]]] = {}
    # What transformers keeps on every configuration; written only where it differs from these.
    common_defaults: ClassVar[dict[str, Any]] = {
        "return_dict": True,
        "output_hidden_states": False,
        "output_attentions": False,
        "tie_word_embeddings": True,
        "architectures": None,
        "dtype": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }

    return_dict: bool
    output_hidden_states: bool
    output_attentions: bool
    tie_word_embeddings: bool
    architectures: list[str] | None
    dtype: "torch.dtype | str | None"
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    name_or_path: str

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        kwargs.pop("transformers_version", None)
        self.name_or_path = str(kwargs.pop("name_or_path", kwargs.pop("_name_or_path", "")))
        if "torch_dtype" in kwargs:
            legacy = kwargs.pop("torch_dtype")
            kwargs.setdefault("dtype", legacy)
        for name, default in self.common_defaults.items():
            try:
                setattr(self, name, copy.copy(kwargs.pop(name, default)))
            except TypeError as error:  # a file, a generator
                raise ConfigError(f"{type(self).__name__}: {name} cannot be kept ({error}).") from None
        self._check_common()
        for name, value in kwargs.items():
            if hasattr(type(self), name):
                raise ConfigError(
                    f"{type(self).__name__}: {name!r} cannot be a key of a configuration; remove it."
                )
            setattr(self, name, value)

    def _check_common(self) -> None:
        owner, absent = type(self).__name__, type(None)
        for name in ("return_dict", "output_hidden_states", "output_attentions", "tie_word_embeddings"):
            check_field(owner, name, getattr(self, name), bool)
        for name in ("bos_token_id", "pad_token_id"):
            check_field(owner, name, getattr(self, name), (int, absent))
        check_field(owner, "eos_token_id", self.eos_token_id, (int, list, absent))
        for number in self.eos_token_id if isinstance(self.eos_token_id, list) else []:
            check_field(owner, "eos_token_id", number, int)
        check_field(owner, "architectures", self.architectures, (list, absent))
        if type(self.dtype).__module__ != "torch":  # a torch.dtype, told without importing torch
            check_field(owner, "dtype", self.dtype, (str, absent))

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are not set: aliases such as image_token_id.
        target = type(self).attribute_map.get(name)
        if target is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self, target)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(type(self).attribute_map.get(name, name), value)

    @property
    def torch_dtype(self) -> "torch.dtype | str | None":
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: "torch.dtype | str | None") -> None:
        self.dtype = value

    @property
    def use_return_dict(self) -> bool:
        """Whether forward() returns an output object (True) or a tuple."""
        return self.return_dict

    @property
    def has_vision(self) -> bool:
        """Whether the model has a vision tower beside its decoder."""
        return False

    def get_text_config(self, decoder: bool = False) -> "PretrainedConfig":
        """The configuration of the language model: this one, or its text_config."""
        text = getattr(self, "text_config", None)
        return text if isinstance(text, PretrainedConfig) else self

    # --- dict and JSON ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """All keys, in a form that JSON can hold; nested configurations become dicts."""
        written: dict[str, Any] = {"model_type": type(self).model_type} if type(self).model_type else {}
        own = signature(type(self)).parameters  # a class may have another default, as Mistral's bos_token_id
        for name, value in sorted(vars(self).items()):
            if name == "name_or_path" or name.startswith("_"):
                continue
            # Tying is always written: its default differs between the classes that may read the file.
            default = own[name].default if name in own else self.common_defaults.get(name)
            usual = name in self.common_defaults and value == default
            if usual and name != "tie_word_embeddings":
                continue
            written[name] = _plain(value)
        return written

    @classmethod
    def from_dict(cls: type[Self], config_dict: Mapping[str, Any], **kwargs: Any) -> Self:
        """A configuration from a mapping; `kwargs` take precedence over its keys, and are merged into nested ones."""
        if not isinstance(config_dict, Mapping):
            raise ConfigError(f"{cls.__name__} expects an object of keys, got {type(config_dict).__name__}.")
        declared = config_dict.get("model_type")
        if cls.model_type and declared is not None and declared != cls.model_type:
            raise ConfigError(
                f"{cls.__name__} reads model_type {cls.model_type!r}, but the configuration says {declared!r}; "
                "use AutoConfig to choose the class by the file."
            )
        given = cls._overridden(config_dict, kwargs) if kwargs else dict(config_dict)
        if "self" in given:
            raise ConfigError(f"{cls.__name__}: 'self' cannot be a key of a configuration; remove it.")
        try:
            given = copy.deepcopy(given)
        except (TypeError, RecursionError) as error:  # a file, a generator
            raise ConfigError(f"{cls.__name__}: a key holds what cannot be copied ({error}).") from None
        return cls(**given)

    @classmethod
    def _overridden(cls, config_dict: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of `config_dict` with `kwargs` over them, part by part."""
        parts = {name: kwargs[name] for name in cls.part_makers if name in kwargs}
        rest = {name: value for name, value in kwargs.items() if name not in parts}
        merged = merge_overrides(config_dict, rest)
        for name, value in parts.items():
            read = config_dict.get(name)
            part = cls.part_makers[name](getattr(cls(), name) if read is None else read, cls.__name__)
            if isinstance(value, Mapping):
                value = merge_overrides(read if isinstance(read, Mapping) else part.to_dict(), value)
            elif isinstance(value, PretrainedConfig):
                warn_replaced(name, part, value)
            merged[name] = part if value is None else value
        return merged

    def to_json_string(self, use_diff: bool = True) -> str:
        """The configuration as indented JSON with sorted keys (`use_diff` is accepted and changes nothing)."""
        return json_text(self.to_dict(), f"the {type(self).__name__}")

    def to_json_file(self, json_file_path: "str | Path", use_diff: bool = True) -> None:
        """Write `to_json_string()` to a file."""
        write_text(Path(json_file_path), self.to_json_string(use_diff))

    @classmethod
    def from_json_file(cls: type[Self], json_file: "str | Path") -> Self:
        """Read a JSON file that `to_json_file` or transformers wrote."""
        return cls.from_dict(read_config_file(Path(json_file)))

    # --- folders ------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: "str | Path", push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json into a folder, which is made if it is not there."""
        if push_to_hub:
            self.push_to_hub()
        if kwargs:
            raise ConfigError(
                f"save_pretrained of a configuration does not know {', '.join(sorted(kwargs))}."
            )
        text = self.to_json_string()
        if Path(save_directory).is_file():
            raise ConfigError(f"{save_directory} is a file; save_pretrained needs a folder.")
        folder = prepare_folder(save_directory)
        write_text(folder / CONFIG_NAME, text)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: nothing here uploads."""
        raise UnsupportedError("push_to_hub is not supported; use save_pretrained and the hub's own client.")

    @classmethod
    def from_pretrained(
        cls: type[Self],
        pretrained_model_name_or_path: "str | os.PathLike[str]",
        cache_dir: "str | Path | None" = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: "str | bool | None" = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Self:
        """Read config.json from a folder or a hub name; further keywords override its keys.

        A folder in Mistral's own format has a params.json instead; `format` "hf" or "mistral" chooses where both are.
        """
        config_dict = read_config_folder(
            pretrained_model_name_or_path,
            HubOptions(revision, token, cache_dir, local_files_only, force_download),
            format=kwargs.pop("format", None),
        )
        if cls.model_type and config_dict.get("model_type") != cls.model_type:
            config_dict = _section(config_dict, cls.model_type) or config_dict
        config = cls.from_dict(config_dict, **kwargs)
        config.name_or_path = str(pretrained_model_name_or_path)
        return config

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable: equality is by content

    def __repr__(self) -> str:
        return f"{type(self).__name__} {shown_json(self.to_dict())}"

    def __deepcopy__(self: Self, memo: dict[int, Any]) -> Self:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        vars(clone).update({name: copy.deepcopy(value, memo) for name, value in vars(self).items()})
        return clone


def _section(config_dict: Mapping[str, Any], model_type: str) -> dict[str, Any] | None:
    """The nested configuration of `model_type` (text_config or vision_config) when the outer one is another's."""
    for name in ("text_config", "vision_config"):
        section = config_dict.get(name)
        if isinstance(section, dict) and section.get("model_type") == model_type:
            return section
    return None


def _plain(value: Any) -> Any:
    """`value` in a form that JSON can hold: dtypes by name, configurations as dicts."""
    if isinstance(value, PretrainedConfig):
        return value.to_dict()
    if hasattr(value, "to_dict"):  # a quantization_config
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if isinstance(value, Path):
        return str(value)
    return value
