"""Resolve a name or a path to a local folder: files to fetch from a repository, and cases without a connection."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.arguments import check, short
from vitrail.errors import CheckpointError, InputError
from vitrail.files import hub_client
from vitrail.files.download import Download, free_bytes, listener, told
from vitrail.files.download_plan import ADAPTER, SETTINGS, Wanted
from vitrail.files.formatting import in_words, listed
from vitrail.files.hub_cache import HubCache
from vitrail.files.hub_client import HubUnreachableError, silent_bars
from vitrail.files.hub_options import HubOptions
from vitrail.files.layout import ADAPTER_CONFIG, NAMES, formats_of
from vitrail.files.opening import home_path
from vitrail.files.repository import Repository

_REPOSITORY = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def resolve(
    name_or_path: str | os.PathLike[str],
    hub: HubOptions | None = None,
    *,
    format: str | None = None,
    part: str = SETTINGS,
    **keywords: Any,
) -> Path:
    """Return the folder of a checkpoint: `name_or_path` itself if it is a folder, else that of the hub's repository.

    Only missing files are fetched. A complete commit in the cache, `local_files_only` and HF_HUB_OFFLINE need no
    connection.

    Args:
        format: "hf" or "mistral"; None: the choice of layout.choose_among.
        part: the files to fetch (download_plan.py): settings, the model with them, or an adapter.
        keywords: the fields of HubOptions, without `hub`.

    Raises:
        CheckpointError: naming what was looked for and what to do.
        InputError: an invalid argument.
    """
    hub = hub or HubOptions(**keywords)
    name_or_path, hub = hub.entered(name_or_path)
    name = os.fspath(name_or_path)
    if not name.strip():
        raise CheckpointError("the checkpoint's name is empty; give a folder or a name like 'owner/model'.")
    if format is not None and (not isinstance(format, str) or format not in NAMES):
        raise InputError(f"format must be 'hf' or 'mistral', got {short(format)}.")
    check("from_pretrained", "the checkpoint's name", name, str | os.PathLike)
    folder = home_path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        kind = "a checkpoint is a folder with a config.json or a params.json"
        if part == ADAPTER:
            kind = f"an adapter is a folder with an {ADAPTER_CONFIG}"
        raise CheckpointError(f"{folder} is a file; {kind}.")
    if not _is_repository(name):
        raise CheckpointError(
            f"there is no folder {name!r}; give a checkpoint's folder or a name like 'owner/model'."
        )
    root = hub_client.cache_root() if hub.cache_dir is None else home_path(hub.cache_dir)
    cache = HubCache(root, name)
    asked = _Asked(cache, hub.revision or "main", hub.token, format, part, hub.force_download)
    if hub.local_files_only or hub_client.is_offline():
        return asked.kept("local_files_only" if hub.local_files_only else "HF_HUB_OFFLINE")
    return asked.fetched()


def _is_repository(name: str) -> bool:
    looks_local = name.startswith((".", "/", "~")) or ".." in name or "--" in name
    return not looks_local and _REPOSITORY.fullmatch(name) is not None


@dataclass(frozen=True)
class _Asked:
    """One request for a repository's folder."""

    cache: HubCache
    revision: str
    token: str | bool | None
    format: str | None
    part: str
    anew: bool

    def kept(self, forbids: str) -> Path:
        """Return the folder from the cache alone, without a connection."""
        if self.anew:
            raise InputError(f"force_download asks for what {forbids} forbids; leave one of them out.")
        where = f"{self.cache.name} (revision {self.revision})"
        commit = self._commit_here()
        if commit is None:
            raise CheckpointError(
                f"there is no folder {self.cache.name!r}, {where} is not in the cache {self.cache.root} either, and "
                f"{forbids} forbids to fetch it."
            )
        if missing := self._missing(commit):
            repository = self.cache.repository(commit)
            size = 0 if repository is None else repository.size(missing)
            raise CheckpointError(
                f"{where} is in the cache {self.cache.root} only in part, without {listed(missing, most=6)} "
                f"({in_words(size)}), and {forbids} forbids to fetch the rest.{self._other_format(commit)}"
            )
        return self.cache.snapshot(commit)

    def fetched(self) -> Path:
        """Fetch the missing files and return the folder."""
        commit = self._commit_here()
        known = commit == self.revision and self.cache.repository(commit) is not None
        if known and not self.anew and not self._missing(self.revision):
            return self.cache.snapshot(self.revision)
        try:
            repository = hub_client.look_up(self.cache.name, self.revision, self.token)
        except HubUnreachableError as error:
            if commit is None or self.anew or self._missing(commit):
                raise CheckpointError(
                    f"there is no folder {self.cache.name!r} and no whole copy in the cache {self.cache.root}, and {error}."
                ) from error
            warnings.warn(f"{error}; the copy in the cache (commit {commit[:12]}) is used.", stacklevel=4)
            return self.cache.snapshot(commit)
        return self._bring(repository)

    def _commit_here(self) -> str | None:
        """Return the commit last known for the revision, if any file of it is cached."""
        commit = self.cache.commit_of(self.revision)
        return commit if commit is not None and self.cache.snapshot(commit).is_dir() else None

    def _missing(self, commit: str) -> list[str]:
        """Return a cached commit's missing files; none for another program's download, left to the readers to check."""
        repository = self.cache.repository(commit)
        if repository is None:
            return []
        wanted = Wanted.of(repository, self.format, self.part)
        return self.cache.missing(repository, wanted.names)

    def _other_format(self, commit: str) -> str:
        """Return a hint if the cache has the other format."""
        repository = self.cache.repository(commit)
        if repository is None or self.format is not None:
            return ""
        chosen = Wanted.of(repository, None, self.part).format
        for format in formats_of(repository.files):
            if format != chosen and not replace(self, format=format)._missing(commit):
                return f" It is here in {NAMES[format]}: say format={format!r}."
        return ""

    def _bring(self, repository: Repository) -> Path:
        """Fetch a commit's missing files. Raises before the first byte if they do not fit on the disk."""
        wanted = Wanted.of(repository, self.format, self.part)
        missing = wanted.names if self.anew else self.cache.missing(repository, wanted.names)
        download = self._download(repository, wanted, missing)
        download.check_room()
        with (
            silent_bars(listener() is not None),
            told(download, lambda: self._here(repository, missing)),
            self._explained(repository, missing),
        ):
            self._fetch(repository, wanted, missing)
        if rest := self.cache.missing(repository, wanted.names):
            raise CheckpointError(
                f"{listed(rest)} of {repository.name} came in another size than the hub says."
            )
        return self.cache.snapshot(repository.commit)

    @contextmanager
    def _explained(self, repository: Repository, missing: list[str]) -> Iterator[None]:
        """Add the progress to network errors, and convert the disk's errors to CheckpointError."""
        try:
            yield
        except HubUnreachableError as error:
            here, size = in_words(self._here(repository, missing)), in_words(repository.size(missing))
            raise HubUnreachableError(
                f"{error} and run this again: {here} of {size} are here, and it goes on from there."
            ) from error
        except OSError as error:
            if missing:  # else only a record for later calls, optional in a read-only cache
                reason = error.strerror or error
                raise CheckpointError(f"the cache {self.cache.root} cannot be written: {reason}.") from error

    def _fetch(self, repository: Repository, wanted: Wanted, missing: list[str]) -> None:
        """Fetch file by file, small ones first; record the file list after the first, the branch after the small."""
        for names in (wanted.small, wanted.weights):
            for name in names:
                if name in missing:
                    wrong = self.cache.discard(repository, name)
                    hub_client.fetch(self.cache, repository, name, self.token, anew=self.anew or wrong)
                    self.cache.keep(repository)
            self.cache.keep(repository)
            self.cache.remember(self.revision, repository)

    def _download(self, repository: Repository, wanted: Wanted, missing: list[str]) -> Download:
        return Download(
            name=repository.name,
            commit=repository.commit,
            format=wanted.format,
            weights=any(name in missing for name in wanted.weights),
            files=len(missing),
            size=repository.size(missing),
            done=self._here(repository, missing),
            folder=self.cache.root,
            free=free_bytes(self.cache.root),
        )

    def _here(self, repository: Repository, names: list[str]) -> int:
        return 0 if self.anew else self.cache.bytes_here(repository, names)
