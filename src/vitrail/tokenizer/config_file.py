"""tokenizer_config.json of a folder, with what older folders keep beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrail.files.json import read_json


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json with what older folders keep in special_tokens_map.json; {} where there is neither."""
    config = _optional_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config.update(_optional_json(folder / "special_tokens_map.json"))
    return config


def _optional_json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
