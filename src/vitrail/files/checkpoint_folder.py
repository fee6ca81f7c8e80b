"""CheckpointFolder: a checkpoint that is opened once, its files listed once and its small files read once.

It knows names, JSON and token ids; configurations, tokenizers, processors and weights are made from it by the layers
above, each of which takes a name, a path or a folder that is open already.
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


class CheckpointFolder(os.PathLike[str]):
    """A checkpoint's folder on this disk.

    path     where it lies; of a model on the hub, the snapshot in the cache.
    name     as it was given: a path or a name on the hub.
    format   the format asked for; None leaves the choice to the files (see `layout`).
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
        """Open a folder, or the settings of a model on the hub; `fetch_weights` brings the rest.

        A CheckpointFolder is returned as it is, unless it is in another format than `format`. Raises CheckpointError
        for what is not there, InputError for an unknown format.
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
        """The same for a folder on this disk; a path that is none is not looked for on the hub."""
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
        """The names of the files in the folder, without those of its subfolders.

        CheckpointError where a save into it was cut off, or one of them is a link out of it.
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
        """The repository of the hub of which the folder may be a part; None where that is unknown."""
        return repository_of(self.path)

    @cached_property
    def commit(self) -> str | None:
        """The commit whose snapshot this is; None for a folder that is not in the hub's cache."""
        is_snapshot = self.path.parent.name == "snapshots" and COMMIT.fullmatch(self.path.name)
        return self.path.name if is_snapshot else None

    @cached_property
    def layout(self) -> str:
        """The format to read the folder in, "hf" or "mistral".

        Where both are complete, Hugging Face's comes first; else the one whose configuration and weights are both
        there; else the one whose configuration is. A folder with neither counts as "hf": its reader says what it lacks.
        Of a folder in the hub's cache, which may hold the half of a repository, the whole repository counts.

        Raises CheckpointError where the folder does not hold the format that was asked for.
        """
        configs = CONFIGS.values()
        rest = [] if self.repository is None else [n for n in self.repository.files if n not in configs]
        return choose_among([*self.files, *rest], self.format, str(self.path))

    def json(self, name: str) -> dict[str, Any]:
        """The object in one of the folder's small JSON files, {} where it is not there. The caller may change it."""
        if name not in self.files:
            return {}
        if name not in self._json:
            index = name.endswith(".index.json")  # with a line for every tensor
            self._json[name] = read_json(self.path / name, limit=JSON_LIMIT if index else SETTINGS_LIMIT)
        return copy.deepcopy(self._json[name])

    def refuse_adapter(self) -> None:
        """Raise CheckpointError, naming the base model, where the folder holds an adapter and no model."""
        if ADAPTER_CONFIG not in self.files or not self.files.isdisjoint(CONFIGS.values()):
            return
        base = self.json(ADAPTER_CONFIG).get("base_model_name_or_path") or "the model that it was trained on"
        raise CheckpointError(
            f"{self.name} holds an adapter, not a model: give {base} as the model, and this folder as the adapter "
            "(--adapter, load_adapter)."
        )

    def tokenizer_file(self, mode: str = "auto") -> Path | None:
        """The tokenizer's file that counts, as `choose_tokenizer_file` says; None where there is none."""
        name = choose_tokenizer_file(self.files, mode)
        return None if name is None else self.path / name

    def token_ids(self, file: Path) -> TokenIds:
        """What a tokenizer's file of this folder says, read from the file unless a tokenizer was made of it already."""
        if file.name not in self._token_ids:
            self._token_ids[file.name] = read_token_ids(file)
        return self._token_ids[file.name]

    def keep_token_ids(self, ids: TokenIds) -> None:
        """Keep what an opened tokenizer has, so that its file, which may be large, is not parsed again."""
        self._token_ids[ids.file.name] = ids

    def fetch_weights(self) -> None:
        """Bring the model's weights into the folder, of the same commit; nothing where they are here."""
        if self.path == home_path(self.name):
            return
        hub = replace(self._hub, revision=self.path.name)  # even if the branch has moved since
        resolve(self.name, hub, format=self.format, part=MODEL)
        self.__dict__.pop("files", None)
