"""HubCache: the hub client's folder of one repository on the local disk, and its complete files. Fetches nothing.

The layout is the client's, documented in its guide "Manage your cache", and shared with other programs: blobs hold the
contents, snapshots/<commit> links to them by file name, refs/<branch> names a commit. Vitrail adds one folder,
.vitrail, with the file list of each commit, which distinguishes a partial snapshot from a complete one.
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

# Names of branches and tags that git allows and a path can hold safely.
_REVISION = re.compile(r"(?!.*\.\.)(?![./-])[\w./+@=-]{1,200}(?<![./])")
_OWN = ".vitrail"
_REPOSITORY_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class HubCache:
    """The client's folder for the model `name`, made by the client's first fetch. root: the folder of all models."""

    root: Path
    name: str

    @property
    def folder(self) -> Path:
        """The folder of this repository."""
        return self.root / "--".join(["models", *self.name.split("/")])

    def snapshot(self, commit: str) -> Path:
        """Return the folder of one commit's files."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """Return the commit of a revision at its last lookup; None where unknown."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            text = self._ref(revision).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if COMMIT.fullmatch(text) else None

    def remember(self, revision: str, repository: Repository) -> None:
        """Record the commit of a branch or tag; called only once its small files are complete."""
        if not COMMIT.fullmatch(revision) and self.commit_of(revision) != repository.commit:
            _write(self._ref(revision), repository.commit)

    def repository(self, commit: str | None) -> Repository | None:
        """Return the recorded file list of a commit; None without one."""
        return None if commit is None else repository_of(self.snapshot(commit))

    def keep(self, repository: Repository) -> None:
        """Record a commit's file list."""
        file = _list_of(self.snapshot(repository.commit))
        if not file.is_file():
            _write(file, json.dumps(repository.as_json(), sort_keys=True))

    def missing(self, repository: Repository, names: Iterable[str]) -> list[str]:
        """Return the named files that are missing or incomplete in the commit's snapshot."""
        return [name for name in names if not self._is_whole(repository, name)]

    def bytes_here(self, repository: Repository, names: Iterable[str]) -> int:
        """Return the bytes of the named files on the disk, unfinished ones included."""
        return sum(self._bytes_of(repository, name) for name in names)

    def discard(self, repository: Repository, name: str) -> bool:
        """Remove an incomplete file, which the client would take for complete; return whether there was one."""
        file, blob = self.snapshot(repository.commit) / name, self.blob(repository, name)
        size = repository.files[name].size
        there = file.exists() or (size is not None and _size(blob) not in (None, size))
        file.unlink(missing_ok=True)
        part = unfinished(blob)
        if size is not None and (_size(part) or 0) > size:
            part.unlink()  # too long already: continuing cannot repair it
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
        """Return the path of a complete file's content."""
        return self.folder / "blobs" / (repository.files[name].blob or "unknown")

    def _ref(self, revision: str) -> Path:
        if _REVISION.fullmatch(revision) is None:
            raise InputError(f"revision is the name of a branch, a tag or a commit; got {revision!r}.")
        return self.folder / "refs" / revision


def repository_of(snapshot: Path) -> Repository | None:
    """Return the file list of the commit whose snapshot this folder is; None for any other folder."""
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
    """Return the path of a blob that is still being written."""
    return blob.with_name(f"{blob.name}.incomplete")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _write(file: Path, text: str) -> None:
    """Write a file atomically."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.unlink(missing_ok=True)
        with scratch.open("x", encoding="utf-8") as stream:  # follows no link
            stream.write(text)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)
