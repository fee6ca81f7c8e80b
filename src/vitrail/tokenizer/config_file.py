"""tokenizer_config.json of a folder, merged with special_tokens_map.json of older folders."""

from __future__ import annotations

from typing import Any

from vitrail.files.checkpoint_folder import CheckpointFolder


def read_tokenizer_config(folder: CheckpointFolder) -> dict[str, Any]:
    """Read tokenizer_config.json, with special_tokens_map.json of older folders; {} where there is neither."""
    config = folder.json("tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config.update(folder.json("special_tokens_map.json"))
    return config
