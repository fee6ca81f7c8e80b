"""Where the hub's client keeps one repository on this disk, and what of it is whole. Fetches nothing.

The layout is the client's, documented in its guide "Manage your cache", and shared with other programs: blobs hold the
contents, snapshots/<commit> links to them by file name, refs/<branch> names a commit. Beside them lies one folder of
ours, .vitrail, with the list of files of each commit, so that a part of a snapshot can be told from the whole.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vitrail.errors import CheckpointError, InputError
from vitrail.files.json import read_json
from vitrail.files.repository import COMMIT, Repository

# What git allows in the name of a branch or tag, as far as it is safe in a path.
_REVISION = re.compile(r"(?!.*\.\.)(?![./-])[\w./+@=-]{1,200}(?<![./])")
_OWN = ".vitrail"
_REPOSITORY_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class HubCache:
    """The client's folder for the model `name`, made by the client when it fetches. root: all models' folder."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """Where this repository lies."""
        return self.root / "--".join(["models", *self.name.split("/")])

    def snapshot(self, commit: str) -> Path:
        """The folder of one commit's files."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """The commit that a revision meant when it was last asked for; None where that is unknown."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = self._ref(revision).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def remember(self, revision: str, repository: Repository) -> None:
        """Write down what a branch or tag means now. Called when its small files are whole, and not before."""
        if not COMMIT.fullmatch(revision) and self.commit_of(revision) != repository.commit:
            _write(self._ref(revision), repository.commit)

    def repository(self, commit: str | None) -> Repository | None:
        """The list of a commit's files, where this library has seen it."""
        return None if commit is None else repository_of(self.snapshot(commit))

    def keep(self, repository: Repository) -> None:
        """Write down the list of a commit's files."""
        file = _list_of(self.snapshot(repository.commit))
        if not file.is_file():
            _write(file, json.dumps(repository.as_json(), sort_keys=True))

    def missing(self, repository: Repository, names: Iterable[str]) -> list[str]:
        """Those of the named files that are not in the commit's snapshot, or not whole."""
        return [name for name in names if not self._is_whole(repository, name)]

    def bytes_here(self, repository: Repository, names: Iterable[str]) -> int:
        """How much of the named files is on this disk already, unfinished ones included."""
        return sum(self._bytes_of(repository, name) for name in names)

    def discard(self, repository: Repository, name: str) -> bool:
        """Remove a file that is here and not whole; whether there was one. The client takes any file for whole."""
        file, blob = self.snapshot(repository.commit) / name, self.blob(repository, name)
        size = repository.files[name].size
        there = file.exists() or (size is not None and _size(blob) not in (None, size))
        file.unlink(missing_ok=True)
        part = unfinished(blob)
        if size is not None and (_size(part) or 0) > size:
            part.unlink()  # which could only be continued beyond its end
        return there

    def _is_whole(self, repository: Repository, name: str) -> bool:
        size = repository.files[name].size
        there = _size(self.snapshot(repository.commit) / name)
        return there is not None and size in (None, there)

    def _bytes_of(self, repository: Repository, name: str) -> int:
        if self._is_whole(repository, name):
            return _size(self.snapshot(repository.commit) / name) or 0
        blob = self.blob(repository, name)
        return _size(blob) or _size(unfinished(blob)) or 0

    def blob(self, repository: Repository, name: str) -> Path:
        """Where the content of a file lies when it is whole."""
        return self.folder / "blobs" / (repository.files[name].blob or "unknown")

    def _ref(self, revision: str) -> Path:
        if _REVISION.fullmatch(revision) is None:
            raise InputError(f"revision is the name of a branch, a tag or a commit; got {revision!r}.")
        return self.folder / "refs" / revision


def repository_of(snapshot: Path) -> Repository | None:
    """The list of all files of the commit whose snapshot this folder is; None for any other folder."""
    file = _list_of(snapshot)
    if snapshot.parent.name != "snapshots" or not file.is_file():
        return None
    data = read_json(file, limit=_REPOSITORY_LIMIT)
    try:
        return Repository.from_json(data)
    except (CheckpointError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); remove it, and the hub is asked again."
        ) from error


def _list_of(snapshot: Path) -> Path:
    return snapshot.parent.parent / _OWN / f"{snapshot.name}.json"


def unfinished(blob: Path) -> Path:
    """Where a blob is written until it is whole."""
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _write(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.unlink(missing_ok=True)
        with scratch.open("x", encoding="utf-8") as stream:  # a link is not followed
            stream.write(text)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
