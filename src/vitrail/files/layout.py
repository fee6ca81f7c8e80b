"""Which of the two formats a checkpoint's folder is in, told by the names of its files. Reads none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vitrail.errors import CheckpointError, InputError

HF: Final = "hf"
MISTRAL: Final = "mistral"
CONFIG_NAME: Final = "config.json"
PARAMS_NAME: Final = "params.json"
NAMES: Final = {HF: "Hugging Face's format", MISTRAL: "Mistral's own format"}
_CONFIGS: Final = {HF: CONFIG_NAME, MISTRAL: PARAMS_NAME}


def choose_format(folder: Path, wanted: str | None = None) -> str:
    """The format to read `folder` in: "hf" or "mistral"; `wanted` where that is given.

    Where both are complete, Hugging Face's comes first; else the one whose configuration and weights are both
    there; else the one whose configuration is. A folder with neither counts as "hf": its reader says what it lacks.

    Raises InputError for another word, CheckpointError where the folder does not hold the wanted format.
    """
    if wanted is not None and wanted not in NAMES:
        raise InputError(f"format must be 'hf' or 'mistral', got {wanted!r}.")
    configured = [name for name, file in _CONFIGS.items() if (folder / file).is_file()]
    if wanted is not None:
        if folder.is_dir() and wanted not in configured and configured:
            raise CheckpointError(
                f"{folder} has no {_CONFIGS[wanted]}, so it is not in {NAMES[wanted]}; it is in {NAMES[configured[0]]}: "
                f"leave format out or say format={configured[0]!r}."
            )
        return wanted
    complete = [name for name in configured if _has_weights(folder, name)]
    return next(iter(complete or configured), HF)


def _has_weights(folder: Path, name: str) -> bool:
    names = [path.name for path in folder.glob("*.safetensors") if not path.name.startswith("adapter_")]
    return (name == MISTRAL) in [file.startswith("consolidated") for file in names]
