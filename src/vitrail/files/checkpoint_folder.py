"""CheckpointFolder: a checkpoint opened once, its files listed once and its small files read once.

Contents: names, JSON and token ids. The layers above make configurations, tokenizers, processors and weights from it;
each takes a name, a path or an open folder.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrail.errors import CheckpointError
from vitrail.files.download_plan import MODEL
from vitrail.files.hub import resolve
from vitrail.files.hub_cache import repository_of
from vitrail.files.hub_options import HubOptions
from vitrail.files.json import JSON_LIMIT, SETTINGS_LIMIT, read_json
from vitrail.files.layout import ADAPTER_CONFIG, CONFIGS, choose_among
from vitrail.files.links import refuse_outside
from vitrail.files.opening import home_path
from vitrail.files.replacing import refuse_incomplete
from vitrail.files.repository import COMMIT, Repository
from vitrail.files.token_ids import TokenIds, choose_tokenizer_file, read_token_ids
from vitrail.files.training_run import refuse_unfinished


class CheckpointFolder(os.PathLike[str]):
    """A checkpoint's folder on the local disk.

    Attributes:
        path: its location; for a model on the hub, the snapshot in the cache.
        name: the path or hub name as given.
        format: the requested format; None leaves the choice to the files (see `layout`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        hub: HubOptions | None = None,
        format: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = str(path) if name is None else name
        self.format = format
        self._hub = hub or HubOptions()
        self._json: dict[str, dict[str, Any]] = {}
        self._token_ids: dict[str, TokenIds] = {}

    @classmethod
    def open(
        cls, name_or_path: str | os.PathLike[str], hub: HubOptions | None = None, *, format: str | None = None
    ) -> CheckpointFolder:
        """Open a folder, or the settings of a model on the hub; `fetch_weights` adds the rest.

        A CheckpointFolder is returned as it is, unless `format` differs.

        Raises:
            CheckpointError: the folder or repository does not exist.
            InputError: an unknown format.
        """
        if hub is not None and hub.subfolder:
            name_or_path, hub = hub.entered(name_or_path)
        if isinstance(name_or_path, CheckpointFolder):
            if format in (None, name_or_path.format) or format == name_or_path.layout:
                return name_or_path
            commit = name_or_path.commit
            hub = name_or_path._hub if commit is None else replace(name_or_path._hub, revision=commit)
            name_or_path = name_or_path.name
        return cls(
            resolve(name_or_path, hub, format=format), name=os.fspath(name_or_path), hub=hub, format=format
        )

    @classmethod
    def at(cls, path: str | os.PathLike[str], *, format: str | None = None) -> CheckpointFolder:
        """Open a folder on the local disk; a missing path is not looked up on the hub."""
        if isinstance(path, CheckpointFolder):
            return cls.open(path, format=format)
        if not Path(path).is_dir():
            raise CheckpointError(f"{path} is no folder; a checkpoint's folder was expected.")
        return cls(path, format=format)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"CheckpointFolder({self.name!r})"

    @cached_property
    def files(self) -> frozenset[str]:
        """The names of the files in the folder, without those of subfolders.

        Raises:
            CheckpointError: an interrupted save, or a link out of the folder.
        """
        try:
            with os.scandir(self.path) as entries:
                found = [(entry.name, entry.is_symlink()) for entry in entries if entry.is_file()]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        for name, linked in found:
            if linked:
                refuse_outside(self.path / name, self.path)
        names = frozenset(name for name, _ in found)
        refuse_incomplete(self.path, names)
        return names

    @cached_property
    def repository(self) -> Repository | None:
        """The hub repository whose snapshot this is, perhaps in part; None where unknown."""
        return repository_of(self.path)

    @cached_property
    def commit(self) -> str | None:
        """The commit of the snapshot; None outside the hub's cache."""
        is_snapshot = self.path.parent.name == "snapshots" and COMMIT.fullmatch(self.path.name)
        return self.path.name if is_snapshot else None

    @cached_property
    def layout(self) -> str:
        """The format to read the folder in, "hf" or "mistral".

        Complete formats (configuration and weights) come before those with a configuration alone, Hugging Face's before
        Mistral's. A folder with neither counts as "hf": its reader names what is missing. In the hub's cache, where a
        snapshot may be partial, the files of the whole repository count.

        Raises:
            CheckpointError: the folder lacks the requested format.
        """
        configs = CONFIGS.values()
        rest = [] if self.repository is None else [n for n in self.repository.files if n not in configs]
        return choose_among([*self.files, *rest], self.format, str(self.path))

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in one of the folder's small JSON files, {} if missing. The caller may change it."""
        if name not in self.files:
            return {}
        if name not in self._json:
            index = name.endswith(".index.json")  # one line per tensor
            self._json[name] = read_json(self.path / name, limit=JSON_LIMIT if index else SETTINGS_LIMIT)
        return copy.deepcopy(self._json[name])

    def refuse_adapter(self) -> None:
        """Raise CheckpointError for a folder with an adapter and no model, or with an unfinished training run."""
        if not self.files.isdisjoint(CONFIGS.values()):
            return
        if ADAPTER_CONFIG not in self.files:
            refuse_unfinished(self.path)
            return
        base = self.json(ADAPTER_CONFIG).get("base_model_name_or_path") or "the model that it was trained on"
        raise CheckpointError(
            f"{self.name} holds an adapter, not a model: give {base} as the model, and this folder as the adapter "
            "(--adapter, load_adapter)."
        )

    def tokenizer_file(self, mode: str = "auto") -> Path | None:
        """Return the path of the tokenizer's file chosen by `choose_tokenizer_file`; None without one."""
        name = choose_tokenizer_file(self.files, mode)
        return None if name is None else self.path / name

    def token_ids(self, file: Path) -> TokenIds:
        """Return the token ids of the tokenizer's file, from an open tokenizer if there is one."""
        if file.name not in self._token_ids:
            self._token_ids[file.name] = read_token_ids(file)
        return self._token_ids[file.name]

    def keep_token_ids(self, ids: TokenIds) -> None:
        """Keep the ids of an open tokenizer, so that its file, often large, is not parsed again."""
        self._token_ids[ids.file.name] = ids

    def fetch_weights(self) -> None:
        """Fetch missing weights of the same commit into the folder."""
        if self.path == home_path(self.name):
            return
        hub = replace(self._hub, revision=self.path.name)  # the same commit, even after the branch has moved
        resolve(self.name, hub, format=self.format, part=MODEL)
        self.__dict__.pop("files", None)
