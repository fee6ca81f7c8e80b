"""Resume log for multi-file writes: finished files are skipped after an interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vitrail.errors import InputError

_LIMIT = 1 << 28  # maximum bytes of a journal
_BLOCK = 1 << 22


class Journal:
    """Lines of JSON in a folder: first the identity of the work, then a record per complete file.

    A record is valid if its line is complete and the file has the recorded size and SHA-256.
    """

    NAME = "journal.jsonl"

    def __init__(self, stream: IO[bytes], folder: Path, records: dict[str, dict[str, Any]]) -> None:
        self._stream = stream
        self._folder = folder
        self._records = records

    @property
    def files(self) -> list[str]:
        """Names of the files with records."""
        return list(self._records)

    def finished(self, file: str, size: int) -> dict[str, Any] | None:
        """Return the record of a complete file after verifying it; None if the file must be written."""
        record, path = self._records.get(file), self._folder / file
        if record is None or not path.is_file() or path.stat().st_size < size:
            return None
        same = path.stat().st_size == record.get("size") and digest(path) == record.get("sha256")
        return record if same else None

    def note(self, file: str, **values: Any) -> None:
        """Record that a file is complete, with further values for resuming."""
        path = self._folder / file
        record = {"file": file, "size": path.stat().st_size, "sha256": digest(path), **values}
        self._write(record)
        self._records[file] = record

    def begin(self, work: str) -> None:
        """Record the identity of the work."""
        self._write({"work": work})

    def _write(self, record: Mapping[str, Any]) -> None:
        self._stream.seek(0, os.SEEK_END)
        self._stream.write(json.dumps(record).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


@contextlib.contextmanager
def journal(path: Path, files: Path, work: str, what: str) -> Iterator[Journal]:
    """Open the journal at `path` of the work `work`, whose files are in `files`, exclusively.

    Raises:
        InputError: a journal of other work, or one held by another process; the message calls the work `what`.
    """
    with path.open("a+b") as stream:
        _lock(stream, what)
        stream.seek(0)
        begun, records = _read(stream.read(_LIMIT))
        if begun is not None and begun != work:
            raise InputError(
                f"{path.parent} holds unfinished work of other settings or of another model; finish {what} as it was "
                "begun, or remove that folder."
            )
        kept = Journal(stream, files, records)
        if begun is None:
            stream.truncate(0)
            kept.begin(work)
        yield kept


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _read(data: bytes) -> tuple[str | None, dict[str, dict[str, Any]]]:
    """Return the identity of the work, and the records by file; an incomplete line (from an interruption) ends them."""
    work, records = None, {}
    for line in data.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict):
            break
        if isinstance(record.get("work"), str):
            work = record["work"]
        elif isinstance(record.get("file"), str):
            records[record["file"]] = record
    return work, records


def _lock(stream: IO[bytes], what: str) -> None:
    try:
        import fcntl
    except ImportError:  # not on this system: the caller must avoid two at once
        return
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            f"another process is writing {what}; wait for it, or choose another name."
        ) from error
    except OSError:
        return  # a file system without locks: likewise
