"""The two formats of checkpoints by the names of their files, and the files of each. Reads no content."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from vitrail.errors import CheckpointError, InputError

HF: Final = "hf"
MISTRAL: Final = "mistral"
CONFIG_NAME: Final = "config.json"
PARAMS_NAME: Final = "params.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
NAMES: Final = {HF: "Hugging Face's format", MISTRAL: "Mistral's own format"}
CONFIGS: Final = {HF: CONFIG_NAME, MISTRAL: PARAMS_NAME}
STEMS: Final = {HF: "model", MISTRAL: "consolidated"}
# Shared by both formats: every tokenizer and its settings, since a tokenizer of Mistral's own comes first.
_SHARED: Final = re.compile(
    r"(generation|preprocessor|processor|tokenizer)_config\.json"
    r"|tokenizer\.json|tekken\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.jinja|chat_template\.json|additional_chat_templates/[\w.-]+\.jinja"
    r"|[\w.-]+\.model(\.v\d{1,3}(m\d{1,3})?)?",
    re.ASCII,
)


def choose_among(names: Iterable[str], wanted: str | None, where: str) -> str:
    """Return the format of a checkpoint by its file names, or `wanted`; `where` names it in errors.

    Raises:
        InputError: an unknown format.
        CheckpointError: the files are not in the wanted format.
    """
    if wanted is not None and wanted not in NAMES:
        raise InputError(f"format must be 'hf' or 'mistral', got {wanted!r}.")
    present = set(names)
    configured = formats_of(present)
    if wanted is not None:
        if wanted not in configured and configured:
            raise CheckpointError(
                f"{where} has no {CONFIGS[wanted]}, so it is not in {NAMES[wanted]}; it is in {NAMES[configured[0]]}: "
                f"leave format out or say format={configured[0]!r}."
            )
        return wanted
    return next(iter(complete_formats(present) or configured), HF)


def formats_of(names: Iterable[str]) -> list[str]:
    """Return the formats whose configuration is among `names`, Hugging Face's first."""
    present = set(names)
    return [name for name, file in CONFIGS.items() if file in present]


def complete_formats(names: Iterable[str]) -> list[str]:
    """Return the formats whose configuration and weights are both among `names`, Hugging Face's first."""
    present = set(names)
    return [name for name in formats_of(present) if _weights(present, name)]


def small_files(names: Iterable[str], format: str) -> list[str]:
    """Return the files among `names` without weights: tokenizers, settings, last the configuration of one format."""
    present = sorted(names)
    config = CONFIGS[format]
    return [
        *(name for name in present if _SHARED.fullmatch(name)),
        *(name for name in present if name == config),
    ]


def weight_files(names: Iterable[str], format: str) -> list[str]:
    """Return the weights of one format among `names`: the single file, else the shards with their index; never pickles.

    In Hugging Face's format other safetensors files count if none has a usual name, as in a folder.
    """
    stem = STEMS[format]
    found = sorted(_weights(names, format))
    single = f"{stem}.safetensors"
    if single in found:
        return [single]
    shard = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.safetensors", re.ASCII)
    index = [name for name in names if name == f"{stem}.safetensors.index.json"]
    return [*index, *([name for name in found if shard.fullmatch(name)] or found)]


def _weights(names: Iterable[str], format: str) -> list[str]:
    files = (name for name in names if name.endswith(".safetensors") and "/" not in name)
    return [
        name
        for name in files
        if not name.startswith("adapter_") and name.startswith("consolidated") == (format == MISTRAL)
    ]
