"""Repository: a hub repository at one commit, its files and their sizes. Fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vitrail.errors import CheckpointError
from vitrail.files.formatting import listed
from vitrail.files.names import is_plain

COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})?")  # git's hash, SHA-256, or unknown


@dataclass(frozen=True)
class RemoteFile:
    """One file: its bytes (None if the hub gave none), and the client's name of its content."""

    size: int | None
    blob: str


@dataclass(frozen=True)
class Repository:
    """A repository at one commit. files: name → RemoteFile, all of them.

    Names and blobs become paths in the cache, where files are written and removed: one that leads out of its folder
    refuses the whole listing (CheckpointError).
    """

    name: str
    commit: str
    files: Mapping[str, RemoteFile]

    def __post_init__(self) -> None:
        if COMMIT.fullmatch(self.commit) is None:
            raise CheckpointError(
                f"the hub's answer names no commit of {self.name} ({self.commit[:60]!r}); is HF_ENDPOINT set to another "
                "kind of server?"
            )
        if wrong := [name for name in self.files if not is_plain(name)]:
            raise CheckpointError(
                f"the listing of {self.name} names {listed(map(repr, wrong), most=3)}, and paths inside of the repository "
                "were expected; nothing of it is fetched or read. Is HF_ENDPOINT set to a server that you trust?"
            )
        if wrong := [name for name, file in self.files.items() if _BLOB.fullmatch(file.blob) is None]:
            raise CheckpointError(
                f"the listing of {self.name} gives no hash of 40 or 64 digits for {listed(wrong, most=3)}."
            )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Repository:
        """Read the output of `as_json`. Raises ValueError, TypeError or KeyError for anything else."""
        files = {
            str(name): RemoteFile(None if size is None else int(size), str(blob))
            for name, (size, blob) in dict(data["files"]).items()
        }
        return cls(str(data["name"]), str(data["commit"]), files)

    def as_json(self) -> dict[str, Any]:
        """Return all fields as values that JSON can hold."""
        files = {name: [file.size, file.blob] for name, file in self.files.items()}
        return {"name": self.name, "commit": self.commit, "files": files}

    def size(self, names: Iterable[str]) -> int:
        """Return the total bytes of the named files."""
        return sum(self.files[name].size or 0 for name in names)
