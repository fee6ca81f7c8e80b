"""config.json as published: its location, and the only corrections of mistakes in published files."""

import os
import warnings
from pathlib import Path
from typing import Any

from vitrail.configs.params import config_dict_of, has_params
from vitrail.errors import CheckpointError, ConfigError
from vitrail.files.checkpoint_folder import CheckpointFolder
from vitrail.files.hub_options import HubOptions
from vitrail.files.json import read_json
from vitrail.files.layout import CONFIG_NAME, PARAMS_NAME

# Values of absent keys in a Llava file with a Pixtral tower; the class defaults are CLIP's.
PIXTRAL_LLAVA = {
    "image_token_index": 10,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}


def read_config_folder(
    name_or_path: "str | os.PathLike[str]", hub: HubOptions | None = None, *, format: str | None = None
) -> dict[str, Any]:
    """Read config.json of a folder (or hub name) as a dict, published mistakes corrected; or its params.json as one.

    The path may be that of the file itself. `format` chooses where both exist: "hf" (the default) or "mistral".
    """
    if Path(name_or_path).is_file():
        return read_config_file(Path(name_or_path))
    folder = CheckpointFolder.open(name_or_path, hub, format=format)
    if not {CONFIG_NAME, PARAMS_NAME} & folder.files:
        folder.refuse_adapter()
        raise CheckpointError(
            f"{folder} has neither {CONFIG_NAME} (Hugging Face's format) nor {PARAMS_NAME} (Mistral's own); a checkpoint's "
            "folder was expected."
        )
    config_dict = config_dict_of(folder)
    return config_dict if has_params(folder) else _set_right(config_dict, str(folder.path / CONFIG_NAME))


def read_config_file(path: Path) -> dict[str, Any]:
    """Read one JSON file as a dict, published mistakes corrected."""
    return _set_right(read_json(path), str(path))


def _set_right(config_dict: dict[str, Any], where: str) -> dict[str, Any]:
    kind = config_dict.get("model_type")
    if kind == "pixtral":
        return _silu(config_dict)
    if kind not in ("llava", "mistral3"):
        return config_dict
    for name in ("text_config", "vision_config"):
        if not isinstance(config_dict.get(name), dict):
            raise ConfigError(f"{where} has no {name}; a {kind} configuration needs it as an object of keys.")
    fixed = dict(config_dict)
    if "image_token_id" in fixed:
        fixed.setdefault("image_token_index", fixed.pop("image_token_id"))
    if kind == "llava" and fixed["vision_config"].get("model_type", "pixtral") == "pixtral":
        fixed = {**PIXTRAL_LLAVA, **fixed}
    fixed["vision_config"] = _silu(fixed["vision_config"])
    return fixed


def _silu(vision: dict[str, Any]) -> dict[str, Any]:
    """Return the tower's keys with SiLU for a mistaken "gelu" of published files (corrected upstream, October 2024)."""
    vision = dict(vision)
    meant = vision.pop("exact_hidden_act", False)
    if vision.get("hidden_act") == "gelu" and not meant:
        warnings.warn(
            'config.json says hidden_act "gelu" for the Pixtral tower; every published tower uses SiLU, so SiLU is used.',
            stacklevel=2,
        )
        vision["hidden_act"] = "silu"
    return vision
