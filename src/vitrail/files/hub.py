"""From a name or a path to a folder on this disk. Only this file talks to the Hugging Face hub's client."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vitrail.errors import CheckpointError, MissingPackageError

# Weights, configurations, tokenizers and templates; never pickles, and not the second copy of the weights
# that some repositories carry in Mistral's own layout.
_WANTED = ("*.json", "*.jinja", "*.safetensors", "tokenizer.model*")
_UNWANTED = ("consolidated*", "*/*")
_REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder of a checkpoint: `name_or_path` itself when it is one, else a snapshot from the hub.

    `revision`, `token`, `cache_dir`, `local_files_only` and `force_download` mean what they mean to
    huggingface_hub. Raises CheckpointError that says what was looked for, and where.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder with a config.json.")
    name = os.fspath(name_or_path)
    if not _is_repository(name):
        raise CheckpointError(
            f"there is no folder {name!r}; give a checkpoint's folder or a name like 'owner/model'."
        )
    return _snapshot(name, revision, token, cache_dir, local_files_only, force_download)


def _is_repository(name: str) -> bool:
    looks_local = name.startswith((".", "/", "~")) or ".." in name or "--" in name
    return not looks_local and _REPOSITORY.fullmatch(name) is not None


def _snapshot(
    name: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingPackageError(
            f"{name!r} is no folder here, and the hub needs a package: pip install huggingface_hub."
        ) from error
    try:
        found = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_UNWANTED),
        )
    except Exception as error:  # the client's own errors, its HTTP library's and the system's share no base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        where = "in the local cache" if local_files_only else "on the hub or in the local cache"
        raise CheckpointError(
            f"there is no folder {name!r}, and no model of that name could be had {where} "
            f"(revision {revision or 'main'}): {reason[0]}"
        ) from error
    return Path(found)
