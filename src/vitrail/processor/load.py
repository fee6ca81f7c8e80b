"""Loading of a processor's parts from a folder, in the layouts of transformers 4.x and 5.x."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vitrail.arguments import checked, short
from vitrail.configs.fields import LIMITS
from vitrail.configs.params import config_dict_of
from vitrail.errors import CheckpointError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.keywords import refuse_unknown
from vitrail.files.layout import MISTRAL
from vitrail.tokenizer.fast import FastTokenizer
from vitrail.tokenizer.load import load_tokenizer
from vitrail.tokenizer.mistral import MistralCommonTokenizer
from vitrail.tokenizer.special_tokens import NAMES

if TYPE_CHECKING:
    from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast

_TOKENS = ("image_token", "image_break_token", "image_end_token")
_OWN = ("patch_size", "spatial_merge_size", "chat_template", *_TOKENS)
_TOKENIZER_OPTIONS = (
    "padding_side", "truncation_side", "model_max_length", "model_input_names", "fix_mistral_regex", *NAMES,
)  # fmt: skip
_SETTINGS_HINT = "give it to AutoImageProcessor.from_pretrained, or in the call"


def read_processor(folder: str | os.PathLike[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `PixtralProcessor` for a folder.

    Args:
        folder: folder of a checkpoint.
        overrides: replacements of the processor's arguments and of the tokenizer's configuration.

    Raises:
        CheckpointError: a file is missing, damaged, or of another class.
        InputError: unknown overrides.
    """
    known = (*_OWN, *_TOKENIZER_OPTIONS, "use_fast", "format", "tokenizer_mode")
    if not overrides.keys() <= set(known):
        from vitrail.images.processor import PixtralImageProcessor

        hints = dict.fromkeys(PixtralImageProcessor.option_names, _SETTINGS_HINT)
        refuse_unknown("PixtralProcessor.from_pretrained", overrides, known, hints=hints)
    folder = CheckpointFolder.at(folder, format=overrides.get("format"))
    stored = folder.json("processor_config.json")
    config = config_dict_of(folder)
    if stored.get("processor_class", "PixtralProcessor") != "PixtralProcessor":
        raise CheckpointError(f"{folder} holds a {stored['processor_class']}; PixtralProcessor was expected")
    given = {name: overrides[name] for name in _TOKENIZER_OPTIONS if name in overrides}
    tokenizer = load_tokenizer(folder, overrides.get("tokenizer_mode", "auto"), config=config, **given)
    native = tokenizer.image_settings() if isinstance(tokenizer, MistralCommonTokenizer) else {}
    image_processor = image_processor_of(folder, config, overrides.get("use_fast"), native)
    arguments: dict[str, Any] = {name: stored[name] for name in _TOKENS if stored.get(name) is not None}
    for name, token in arguments.items():
        if not isinstance(token, str):
            raise CheckpointError(
                f"{folder}/processor_config.json: {name} must be a text; got {short(token)}"
            )
    arguments["patch_size"] = _side(stored.get("patch_size"), config, image_processor)
    merge = stored.get("spatial_merge_size")
    if merge is None and not config:
        merge = native.get("spatial_merge_size")
    arguments["spatial_merge_size"] = _merge(merge, config)
    if isinstance(tokenizer, FastTokenizer):  # the others have the prompt format of their own file
        template = tokenizer.chat_template
        arguments["chat_template"] = stored.get("chat_template") if template is None else template
    return {
        **arguments,
        **{name: overrides[name] for name in _OWN if name in overrides},
        "image_processor": image_processor,
        "tokenizer": tokenizer,
    }


def image_settings(folder: str | os.PathLike[str], format: str | None = None) -> dict[str, Any]:
    """Return the image settings of a folder, as keywords of `grid.image_grid`, without opening a tokenizer."""
    folder = CheckpointFolder.at(folder, format=format)
    config = config_dict_of(folder)
    image_processor = image_processor_of(folder, config, None)
    stored = folder.json("processor_config.json")
    settings = image_processor.settings({})
    return {
        "patch_size": _side(stored.get("patch_size"), config, image_processor),
        "merge": _merge(stored.get("spatial_merge_size"), config),
        "longest_edge": settings.box,
        "dialect": settings.dialect,
    }


@checked
def processor_parts(tokenizer: MistralCommonTokenizer) -> dict[str, Any]:
    """Return the arguments of `PixtralProcessor` for a tokenizer of mistral-common alone. Raises CheckpointError."""
    from vitrail.images.processor import PixtralImageProcessor

    native = tokenizer.image_settings()
    if not native:
        raise CheckpointError(
            "this tokenizer's file is for text alone; it does not say how images are prepared"
        )
    return {
        "tokenizer": tokenizer,
        "image_processor": PixtralImageProcessor.from_dict(native["settings"]),
        "patch_size": native["settings"]["patch_size"]["height"],
        "spatial_merge_size": native["spatial_merge_size"],
    }


def image_processor_of(
    folder: CheckpointFolder,
    config: Mapping[str, Any],
    use_fast: bool | None,
    native: Mapping[str, Any] | None = None,
) -> PixtralImageProcessor | PixtralImageProcessorFast:
    """Make the image processor of the folder's settings, else of the vision tower's patch and image size.

    Args:
        native: image settings of the tokenizer's file. A folder in Mistral's own format has the dialect "mistral"
            unless its files name another.

    Raises:
        CheckpointError: the folder has no image settings.
    """
    from vitrail.images.processor import PixtralImageProcessor, PixtralImageProcessorFast

    vision, own_format = config.get("vision_config"), folder.layout == MISTRAL
    settings = _image_settings(folder)
    if settings is None and native and (own_format or not isinstance(vision, Mapping)):
        settings = native["settings"]
    if settings is None:
        if not isinstance(vision, Mapping) or not isinstance(vision.get("patch_size"), int):
            raise CheckpointError(
                f"{folder} does not say how images are prepared: there is neither a preprocessor_config.json nor an "
                "image_processor in processor_config.json, nor a vision_config with a patch_size in config.json"
            )
        side, edge = vision["patch_size"], vision.get("image_size", 1024)
        settings = {"patch_size": {"height": side, "width": side}, "size": {"longest_edge": edge}}
    if own_format:  # as Mistral's own reader does
        settings = {"dialect": "mistral", **settings}
    named_fast = settings.get("image_processor_type") == "PixtralImageProcessorFast"
    fast = named_fast if use_fast is None else use_fast
    made: PixtralImageProcessor | PixtralImageProcessorFast
    made = (PixtralImageProcessorFast if fast else PixtralImageProcessor).from_dict(settings)
    return made


def _image_settings(folder: CheckpointFolder) -> dict[str, Any] | None:
    from vitrail.images.processor_base import read_image_processor_dict

    there = "preprocessor_config.json" in folder.files or "image_processor" in folder.json(
        "processor_config.json"
    )
    return read_image_processor_dict(folder) if there else None


def _side(stored: Any, config: Mapping[str, Any], image_processor: Any) -> int:
    """Return the patch's side: of processor_config.json, else of the model, else of the image processor."""
    vision = config.get("vision_config")
    if stored is None and isinstance(vision, Mapping):
        stored = vision.get("patch_size")
    side = image_processor.patch_size if stored is None else stored
    if isinstance(side, Mapping):
        side = side.get("height")
    return _positive(side, "patch_size")


def _merge(stored: Any, config: Mapping[str, Any]) -> int:
    """Return the merge: of processor_config.json, which some re-uploads lack, else of the model, else 1."""
    if stored is None:
        stored = config.get("spatial_merge_size", 2 if config.get("model_type") == "mistral3" else 1)
    return _positive(stored, "spatial_merge_size")


def _positive(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LIMITS[name]:
        raise CheckpointError(
            f"processor_config.json: {name} must be a whole number from 1 to {LIMITS[name]:,}; got {short(value)}"
        )
    return value
