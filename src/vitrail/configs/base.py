"""PretrainedConfig: the base of all configurations (dict, JSON, folder). No geometry of any model."""

import copy
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from vitrail.arguments import check, checked_except, short
from vitrail.configs.attention import check_attention
from vitrail.configs.fields import check_dtype, check_field
from vitrail.configs.overrides import SPELLINGS, merge_overrides, warn_replaced
from vitrail.configs.published import read_config_file, read_config_folder
from vitrail.errors import ConfigError, UnsupportedError
from vitrail.files.hub_options import HubOptions
from vitrail.files.json import json_text, shown_json
from vitrail.files.keywords import is_secret, near, refuse_unknown
from vitrail.files.layout import CONFIG_NAME
from vitrail.files.writing import prepare_folder, write_text

if TYPE_CHECKING:
    import torch

Self = TypeVar("Self", bound="PretrainedConfig")

# Keys of every configuration beside its own parameters.
_SHARED = (
    "model_type", "transformers_version", "name_or_path", "quantization_config", "rope_parameters", "rope_scaling",
    "rope_theta", "initializer_range", *SPELLINGS,
)  # fmt: skip
# Closer than any other key of the published files; less similar keys may be the user's own.
_SLIP = 0.88
_reading: ContextVar[bool] = ContextVar("a configuration is made of what was read", default=False)


@checked_except("from_dict", "update", "dtype", "torch_dtype")
class PretrainedConfig:
    """Base of all configurations: keeps unknown keys, round-trips through dict, JSON and folder.

    Keywords without a parameter become attributes and are written back, so that no key of a published config.json is
    lost. Names follow Hugging Face transformers 4.57.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}
    # Key of a nested configuration → its factory, from a dict and the owner's name.
    part_makers: ClassVar[dict[str, Callable[..., "PretrainedConfig"]]] = {}
    # The classes of the nested configurations, as transformers lists them.
    sub_configs: ClassVar[dict[str, type["PretrainedConfig"]]] = {}
    # transformers' attributes of every configuration; written only where they differ from these.
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
        "is_encoder_decoder": False,
        "is_decoder": False,
        "add_cross_attention": False,
        "tie_encoder_decoder": False,
        "chunk_size_feed_forward": 0,
        "pruned_heads": {},
        "sep_token_id": None,
        "decoder_start_token_id": None,
        "tokenizer_class": None,
        "prefix": None,
        "problem_type": None,
        "finetuning_task": None,
        "task_specific_params": None,
    }

    return_dict: bool
    output_hidden_states: bool
    output_attentions: bool
    tie_word_embeddings: bool
    architectures: list[str] | None
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    is_encoder_decoder: bool
    name_or_path: str

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        kwargs.pop("transformers_version", None)
        if not _reading.get():
            check_attention(kwargs.pop("attn_implementation", None))
        self.name_or_path = str(kwargs.pop("name_or_path", kwargs.pop("_name_or_path", "")))
        if "torch_dtype" in kwargs:
            legacy = kwargs.pop("torch_dtype")
            kwargs.setdefault("dtype", legacy)
        for name, default in self.common_defaults.items():
            try:
                value = copy.copy(kwargs.pop(name, default))
            except TypeError as error:  # a file, a generator
                raise ConfigError(f"{type(self).__name__}: {name} cannot be kept ({error}).") from None
            setattr(self, name, value)
        PretrainedConfig.check(self)
        for name, value in kwargs.items():
            self._keep(name, value)

    def _keep(self, name: str, value: Any) -> None:
        """Keep a key that this class does not have; refuse secrets and near misses of its own keys."""
        owner = type(self).__name__
        if hasattr(type(self), name):
            raise ConfigError(f"{owner}: {name!r} cannot be a key of a configuration; remove it.")
        if is_secret(name):
            warnings.warn(f"{owner}: {name} holds a secret, and is not kept.", stacklevel=4)
            return
        known = _known(type(self))
        meant = () if _reading.get() or name in known else near(name, known, _SLIP)
        if meant:
            raise ConfigError(f"{owner} has no key {name!r}; did you mean {' or '.join(meant)}?")
        if isinstance(value, int):
            check_field(owner, name, value, (bool, int, float))  # too many digits for JSON
        setattr(self, name, value)

    def check(self) -> None:
        """Raise ConfigError for the first value of a wrong type or out of its range; models call it too."""
        owner, absent = type(self).__name__, type(None)
        flags = (name for name, default in self.common_defaults.items() if isinstance(default, bool))
        for name in flags:
            check_field(owner, name, getattr(self, name), bool)
        for name in ("bos_token_id", "pad_token_id"):
            check_field(owner, name, getattr(self, name), (int, absent), minimum=-1)
        check_field(owner, "eos_token_id", self.eos_token_id, (int, list, absent), minimum=-1)
        for number in self.eos_token_id if isinstance(self.eos_token_id, list) else []:
            check_field(owner, "eos_token_id", number, int, minimum=-1)
        check_field(owner, "architectures", self.architectures, (list, absent))

    def __getattr__(self, name: str) -> Any:
        # Reached for unset names only: aliases such as image_token_id.
        target = type(self).attribute_map.get(name)
        if target is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self, target)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(type(self).attribute_map.get(name, name), value)

    @property
    def dtype(self) -> "torch.dtype | None":
        """The type of the weights, a torch.dtype; config.json holds its name."""
        name = vars(self).get("dtype")
        if name is None:
            return None
        import torch  # here: reading a configuration needs no torch

        dtype: torch.dtype = getattr(torch, name)
        return dtype

    @dtype.setter
    def dtype(self, value: "torch.dtype | str | None") -> None:
        vars(self)["dtype"] = check_dtype(type(self).__name__, value)

    @property
    def torch_dtype(self) -> "torch.dtype | None":
        """The older name of `dtype`."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: "torch.dtype | str | None") -> None:
        self.dtype = value

    @property
    def use_return_dict(self) -> bool:
        """Whether forward() returns an output object instead of a tuple."""
        return self.return_dict

    @property
    def has_vision(self) -> bool:
        """Whether the model has a vision tower beside its decoder."""
        return False

    def get_text_config(self, decoder: bool = False) -> "PretrainedConfig":
        """Return the configuration of the language model: this one, or its text_config."""
        text = getattr(self, "text_config", None)
        return text if isinstance(text, PretrainedConfig) else self

    # --- dict and JSON ------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return all keys as values that JSON can hold; nested configurations become dicts."""
        written: dict[str, Any] = {"model_type": type(self).model_type} if type(self).model_type else {}
        own = signature(type(self)).parameters  # a class may have another default, as Mistral's bos_token_id
        for name, value in sorted(vars(self).items()):
            if name == "name_or_path" or name.startswith("_") or is_secret(name):
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
        """Make a configuration from a mapping.

        Args:
            config_dict: keys of a config.json; those that the class does not have are kept.
            kwargs: override the keys, and are merged into nested ones.

        Returns:
            The configuration; with return_unused_kwargs=True also the dict of keywords that the class does not have.

        Raises:
            ConfigError: a keyword that the class does not have, or a value out of its range.
        """
        if not isinstance(config_dict, Mapping):
            raise ConfigError(f"{cls.__name__} expects an object of keys, got {type(config_dict).__name__}.")
        declared = config_dict.get("model_type")
        if cls.model_type and declared is not None and declared != cls.model_type:
            raise ConfigError(
                f"{cls.__name__} reads model_type {cls.model_type!r}, but the configuration says {short(declared)}; "
                "use AutoConfig to choose the class by the file."
            )
        with_unused = kwargs.pop("return_unused_kwargs", False)
        check_attention(kwargs.pop("attn_implementation", None))  # a keyword of calls only
        unused = {}
        if kwargs:
            known = {*_known(cls), *config_dict}
            unused = {name: kwargs.pop(name) for name in list(kwargs) if with_unused and name not in known}
            cls._refuse_unknown(kwargs, known, cls.__name__)
        given = cls._overridden(config_dict, kwargs) if kwargs else dict(config_dict)
        if "self" in given:
            raise ConfigError(f"{cls.__name__}: 'self' cannot be a key of a configuration; remove it.")
        with _kept():
            config = cls(**copy.deepcopy(given))
        return (config, unused) if with_unused else config  # type: ignore[return-value]

    @classmethod
    def _as_part(cls: type[Self], keys: Any) -> Self:
        """Make a nested configuration from a dict: unknown keys are kept when read, refused in a call."""
        if _reading.get():
            return cls.from_dict(keys)
        given = {name: value for name, value in copy.deepcopy(dict(keys)).items() if name != "self"}
        return cls(**given)

    @classmethod
    def _refuse_unknown(cls, given: Mapping[str, Any], known: Collection[str], owner: str) -> None:
        """Raise ConfigError for keywords that neither the class nor the file has."""
        if given.keys() <= set(known):
            return
        usual = cls() if cls.part_makers else None
        parts = {part: _known(type(getattr(usual, part))) for part in cls.part_makers}
        meant = {
            name: [(part, key) for part in parts for key in near(name, parts[part])[:1]] for name in given
        }
        hints = {name: f"give {found[0][0]}={{{found[0][1]!r}: …}}" for name, found in meant.items() if found}
        hints = {name: hint for name, hint in hints.items() if not near(name, known)}
        refuse_unknown(owner, given, known, error=ConfigError, hints=hints)

    @classmethod
    def _overridden(cls, config_dict: Mapping[str, Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of `config_dict` with `kwargs` over them, nested configurations merged."""
        parts = {name: kwargs[name] for name in cls.part_makers if name in kwargs}
        rest = {name: value for name, value in kwargs.items() if name not in parts}
        merged = merge_overrides(config_dict, rest)
        for name, value in parts.items():
            read = config_dict.get(name)
            with _kept():
                part = cls.part_makers[name](getattr(cls(), name) if read is None else read, cls.__name__)
            if not isinstance(value, Mapping | PretrainedConfig | None):
                value = cls.part_makers[name](value, cls.__name__)
            if isinstance(value, Mapping):
                type(part)._refuse_unknown(
                    value, {*_known(type(part)), *vars(part)}, f"{cls.__name__}: {name}"
                )
                value = merge_overrides(read if isinstance(read, Mapping) else part.to_dict(), value)
            elif isinstance(value, PretrainedConfig):
                warn_replaced(name, part, value)
            merged[name] = part if value is None else value
        return merged

    def to_diff_dict(self) -> dict[str, Any]:
        """Return model_type and the keys that differ from the class's defaults."""
        usual = type(self)().to_dict()
        written = {
            name: getattr(self, name).to_diff_dict() if name in self.part_makers else value
            for name, value in self.to_dict().items()
            if name == "model_type" or name not in usual or value != usual[name]
        }
        return written

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set the keys of `config_dict`, those of nested configurations too; no key if one value is wrong."""
        if not isinstance(config_dict, Mapping):
            raise ConfigError(
                f"{type(self).__name__}.update takes an object of keys, got {type(config_dict).__name__}."
            )
        parts = {name: value for name, value in config_dict.items() if name in self.part_makers}
        whole = {
            n: self.part_makers[n](v, type(self).__name__)
            for n, v in parts.items()
            if not isinstance(v, Mapping)
        }
        given = {name: value for name, value in config_dict.items() if name not in whole}
        checked = vars(type(self).from_dict(self.to_dict(), **given))
        for name in self.part_makers:  # in place: the modules of a model share these objects
            vars(getattr(self, name)).update(vars(checked.pop(name)))
        name_or_path = self.name_or_path
        vars(self).update({**checked, **whole})
        self.name_or_path = str(config_dict.get("name_or_path", name_or_path))

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return indented JSON with sorted keys (`use_diff` is accepted without effect)."""
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
        """Write config.json into a folder, made if missing."""
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
        """Raise UnsupportedError: Vitrail uploads nothing."""
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

        A folder in Mistral's own format has a params.json instead; `format` "hf" or "mistral" chooses where both exist.
        """
        hub = HubOptions.take(
            kwargs,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        place, hub = hub.entered(pretrained_model_name_or_path)
        config_dict = read_config_folder(place, hub, format=kwargs.pop("format", None))
        if cls.model_type and config_dict.get("model_type") != cls.model_type:
            config_dict = _section(config_dict, cls.model_type) or config_dict
        return cls.named(cls.from_dict(config_dict, **kwargs), place)

    @classmethod
    def named(cls: type[Self], made: Self, place: "str | os.PathLike[str]") -> Self:
        """Return the result of from_dict with the name of its source set on the configuration."""
        config = made[0] if isinstance(made, tuple) and made else made
        check(cls.__name__, "made", config, PretrainedConfig)
        config.name_or_path = str(place)
        return made

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: "str | os.PathLike[str]", **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the keys of a config.json as read, and the keywords other than the hub's."""
        place, hub = HubOptions.take(kwargs).entered(pretrained_model_name_or_path)
        return read_config_folder(place, hub, format=kwargs.pop("format", None)), kwargs

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


def _known(kind: type[PretrainedConfig]) -> frozenset[str]:
    """Return the keys that a class of configurations reads."""
    classes = [base for base in kind.__mro__ if issubclass(base, PretrainedConfig)]
    named = {name for base in classes for name in signature(base.__init__).parameters}
    return frozenset({*named, *kind.common_defaults, *kind.attribute_map, *_SHARED} - {"self", "kwargs"})


@contextmanager
def _kept() -> Iterator[None]:
    """Keep keys that a class does not have within this block: they come from a file."""
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def was_read() -> bool:
    """Return whether the configuration in construction comes from a file, where any key is kept."""
    return _reading.get()


def _section(config_dict: Mapping[str, Any], model_type: str) -> dict[str, Any] | None:
    """Return the nested configuration of `model_type` (text_config or vision_config), for a file of an outer type."""
    for name in ("text_config", "vision_config"):
        section = config_dict.get(name)
        if isinstance(section, dict) and section.get("model_type") == model_type:
            return section
    return None


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it: dtypes by name, configurations as dicts."""
    if isinstance(value, PretrainedConfig):
        return value.to_dict()
    if hasattr(value, "to_dict"):  # a quantization_config
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if not is_secret(k)}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if isinstance(value, Path):
        return str(value)
    return value
