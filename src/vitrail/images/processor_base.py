"""BaseImageProcessor: options as attributes, files and dicts, common to both image processors."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from vitrail.arguments import checked_except
from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.files.json import json_text
from vitrail.files.keywords import without_secrets
from vitrail.files.writing import prepare_folder, write_text
from vitrail.images.arrays import FIRST
from vitrail.images.batch_feature import BatchFeature
from vitrail.images.settings import INERT, ImageSettings, refuse_inert

_Self = TypeVar("_Self", bound="BaseImageProcessor")

CONFIG_NAME: Final = "preprocessor_config.json"
PROCESSOR_NAME: Final = "processor_config.json"
# Keys of class names in the files; no options.
_SERVICE: Final = frozenset({"image_processor_type", "feature_extractor_type", "_valid_processor_keys"})
# Keys of either class in files of the other.
_SHARED: Final[dict[str, tuple[Any, ...]]] = {
    **INERT,
    "data_format": (FIRST,),
    "device": (),
    "input_data_format": (),
    "return_tensors": (),
}


@checked_except("__init__", "preprocess", "from_dict")
class BaseImageProcessor:
    """Options, saving and loading of an image processor.

    Subclasses name their options in `option_names` and set each as an attribute; `extra_options` holds unknown keys
    of a file, which are kept and written back.
    """

    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_sizes"]
    option_names: ClassVar[tuple[str, ...]] = ()
    # Vitrail's own, written to a file only where they are not the default.
    own_options: ClassVar[dict[str, Any]] = {"dialect": "hf", "max_image_tokens": None}

    dialect: str
    max_image_tokens: int | None

    def __init__(self, **kwargs: Any) -> None:
        self._processor_class: str | None = kwargs.pop("processor_class", None)
        self.extra_options: dict[str, Any] = {}
        for name in _SERVICE & kwargs.keys():
            del kwargs[name]
        unknown = sorted(kwargs.keys() - _SHARED.keys())
        if unknown:
            raise UnsupportedError(f"{type(self).__name__} has no option {', '.join(unknown)}; leave it out.")
        self._keep(kwargs)

    @property
    def is_fast(self) -> bool:
        """Whether images are processed as tensors (True) or as PIL images (False)."""
        return False

    def __call__(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Call `preprocess`."""
        return self.preprocess(images, **kwargs)

    def preprocess(self, images: Any, **kwargs: Any) -> BatchFeature:
        """Prepare images; defined by the subclasses."""
        raise UnsupportedError("Use PixtralImageProcessor or PixtralImageProcessorFast.")

    def settings(self, given: Mapping[str, Any]) -> ImageSettings:
        """Return the options of one call: the given ones that are not None, else this object's attributes."""
        unknown = sorted(given.keys() - {*self.option_names, *self.own_options, *_SHARED})
        if unknown:
            raise UnsupportedError(f"{type(self).__name__}.preprocess has no option {', '.join(unknown)}.")
        names = (*self.option_names, *self.own_options, *_SHARED)
        options = {name: getattr(self, name, None) for name in names}
        options |= {name: value for name, value in given.items() if value is not None}
        return ImageSettings.of(options)

    def grid_options(self, patch_size: int, merge: int) -> dict[str, Any]:
        """Return the keywords of `grid.image_grid` for a model with these patches, merged merge × merge."""
        settings = self.settings({})
        return {
            "patch_size": patch_size,
            "merge": merge,
            "longest_edge": settings.box,
            "dialect": settings.dialect,
            "max_image_tokens": self.max_image_tokens,
        }

    @classmethod
    def from_pretrained(
        cls: type[_Self],
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Read preprocessor_config.json, or the image_processor part of processor_config.json.

        Args:
            pretrained_model_name_or_path: a folder, one of the files itself, or a name on the hub.
            kwargs: `subfolder`, a folder within it; `format`, "hf" or "mistral" for a repository with both; others
                override options.

        Raises:
            CheckpointError: a file is missing, or is that of another kind of image processor.
            UnsupportedError: unknown keywords.
        """
        from vitrail.files.checkpoint_folder import CheckpointFolder
        from vitrail.files.hub_options import HubOptions

        place: str | os.PathLike[str] = pretrained_model_name_or_path
        format = kwargs.pop("format", None)
        hub = HubOptions.take(
            kwargs,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        place, hub = hub.entered(place)
        if not Path(place).is_file():
            place = CheckpointFolder.open(place, hub, format=format)
        return cls.from_dict(read_image_processor_dict(place), **kwargs)

    @classmethod
    def from_dict(cls: type[_Self], image_processor_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Make an image processor from the content of a file; keywords override options.

        Unknown keys are kept, with a warning if their value matters.

        Args:
            image_processor_dict: content of the file.
            kwargs: options; with return_unused_kwargs=True the result is (processor, unknown keywords).

        Raises:
            UnsupportedError: unknown keywords without return_unused_kwargs.
        """
        if not isinstance(image_processor_dict, Mapping):
            raise InputError(f"{cls.__name__} is made of a dict, got {type(image_processor_dict).__name__}.")
        with_unused = kwargs.pop("return_unused_kwargs", False)
        known = {*cls.option_names, *cls.own_options, *_SHARED, *_SERVICE, "processor_class"}
        unused = {name: kwargs.pop(name) for name in list(kwargs) if name not in known}
        if unused and not with_unused:
            raise UnsupportedError(f"{cls.__name__} has no option {', '.join(sorted(unused))}; leave it out.")
        data = {**image_processor_dict, **kwargs}
        named = data.get("image_processor_type")
        if named is not None and not is_pixtral(named):
            raise CheckpointError(f"These are settings of {named}; {cls.__name__} was expected.")
        processor = cls(**{key: value for key, value in data.items() if key in known})
        processor._keep({key: value for key, value in data.items() if key not in known})
        return (processor, unused) if with_unused else processor

    @classmethod
    def from_json_file(cls: type[_Self], json_file: str | Path) -> Any:
        """Make an image processor from a JSON file."""
        return cls.from_dict(read_image_processor_dict(Path(json_file)))

    def to_dict(self) -> dict[str, Any]:
        """Return every option by its name, and the class's own name as `image_processor_type`."""
        found = {name: _plain(getattr(self, name)) for name in self.option_names}
        for name, default in self.own_options.items():
            if getattr(self, name) != default:
                found[name] = getattr(self, name)
        return {**copy.deepcopy(self.extra_options), **found, "image_processor_type": type(self).__name__}

    def to_json_string(self) -> str:
        """Return the text of preprocessor_config.json."""
        data = self.to_dict()
        if self._processor_class is not None:
            data["processor_class"] = self._processor_class
        return json_text(data, f"the {type(self).__name__}")

    def to_json_file(self, json_file_path: str | Path) -> None:
        """Write `to_json_string` to a file."""
        write_text(Path(json_file_path), self.to_json_string())

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Write preprocessor_config.json into a folder (created if missing); return its path in a list."""
        if push_to_hub or kwargs:
            names = ", ".join(sorted({*kwargs, *(["push_to_hub"] if push_to_hub else [])}))
            raise UnsupportedError(f"save_pretrained does not do {names}; it writes to a local folder.")
        folder = prepare_folder(save_directory)
        self.to_json_file(folder / CONFIG_NAME)
        return [str(folder / CONFIG_NAME)]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> None:
        """Raise UnsupportedError: Vitrail only reads from the hub."""
        raise UnsupportedError("push_to_hub is not supported; use save_pretrained and the hub's own client.")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == getattr(other, "to_dict", dict)()

    __hash__ = None  # type: ignore[assignment]  # options can be changed

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def _set_processor_class(self, processor_class: str) -> None:
        """Set the class of the whole processor for the file (transformers' name for this method)."""
        self._processor_class = processor_class

    def _keep(self, extra: Mapping[str, Any]) -> None:
        """Keep unknown keys as attributes that are written back."""
        refuse_inert(extra)
        for name, value in without_secrets(extra).items():
            if value is not None and value not in _SHARED.get(name, ()):
                warnings.warn(
                    f"{type(self).__name__} does not use {name}={value!r}; it is kept.", stacklevel=4
                )
            if not hasattr(self, name):  # a method, or something of its own
                setattr(self, name, value)
            self.extra_options[name] = value


def is_pixtral(image_processor_type: object) -> bool:
    """Return whether a file's image_processor_type is one of Pixtral's: transformers 4's two names, or 5's."""
    return image_processor_type in (
        "PixtralImageProcessor",
        "PixtralImageProcessorFast",
        "PixtralImageProcessorPil",
    )


def read_image_processor_dict(place: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the settings in a folder or file, without the wrapper of transformers 5 around them."""
    from vitrail.files.checkpoint_folder import CheckpointFolder
    from vitrail.files.json import read_json

    path = Path(place)
    if path.is_dir():
        folder = CheckpointFolder.at(place)
        files: dict[str, dict[str, Any]]
        files = {name: folder.json(name) for name in (CONFIG_NAME, PROCESSOR_NAME) if name in folder.files}
    else:
        files = {path.name: read_json(path)} if path.is_file() else {}
    for name, data in files.items():
        inner = data.get("image_processor")
        if name == PROCESSOR_NAME and inner is None:
            continue
        found = data if inner is None else inner
        if not isinstance(found, dict):
            raise CheckpointError(
                f"{name} in {place} holds no settings of an image processor; a JSON object was expected."
            )
        return found
    raise CheckpointError(
        f"{place} holds no settings of an image processor: {CONFIG_NAME} is missing, and {PROCESSOR_NAME} "
        "has no image_processor."
    )


def _plain(value: Any) -> Any:
    """Return an option in JSON's types: enumeration members by value, devices by name, tuples as lists."""
    value = getattr(value, "value", value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
