"""Records: JSON values of a data file by index, or values in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vitrail.errors import InputError, MissingPackageError, PromptError
from vitrail.files.lfs import refuse_pointer
from vitrail.files.opening import open_regular

LINE_LIMIT = 64 * 1024 * 1024  # maximum bytes of one record: images may be data URLs in it
LIST_LIMIT = 4 << 30  # maximum bytes of a file that is one JSON list, which is read whole to find its items
_PIECE = 1 << 20  # bytes of a line that are looked at together
_BLANK = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Line:
    """Position of a record in a file: its number, counted from 1, and its bytes."""

    number: int
    offset: int
    size: int


class Records(Protocol):
    """Records by index. name and unit ("line", "item", "row") are for messages; `folder` is the base of relative paths."""

    @property
    def name(self) -> str: ...
    @property
    def unit(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any:
        """Return the record's value. PromptError, without the position, if it cannot be read."""

    def number(self, index: int) -> int:
        """Return the number of a record for messages, counted from 1."""

    def digest(self) -> str:
        """Return a digest of the whole content."""


def open_records(source: Any) -> Records:
    """Open a file (JSON Lines, one JSON list, Parquet), a folder saved by `datasets`, or a sequence of records.

    Args:
        source: a path; a `datasets.Dataset`; or a list of mappings.

    Raises:
        InputError: unreadable or empty.
        MissingPackageError: the extra `data` is needed.
    """
    if isinstance(source, (str, Path)):
        records = _open_path(Path(source))
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        records = Rows(source)
    else:
        raise InputError(f"data: expected a path, a datasets.Dataset or a list, got {type(source).__name__}.")
    if not len(records):
        raise InputError(f"{records.name} is empty; expected a conversation as JSON on every line.")
    return records


def _open_path(path: Path) -> Records:
    if (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        datasets = _needed("datasets", "the folder of a saved dataset", path)
        return Rows(datasets.load_from_disk(str(path)), str(path), path)
    if path.suffix == ".parquet":
        return ParquetRows(path)
    return JsonLines(path)


class JsonLines:
    """A file with one JSON value per non-blank line; or one list, whose items are the records."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.folder = path, str(path), path.parent
        items = _find_items(path)
        self.unit = "line" if items is None else "item"
        self._lines = list(find_lines(path)) if items is None else items

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Any:
        return read_line(self.path, self._lines[index])

    def number(self, index: int) -> int:
        return self._lines[index].number

    def digest(self) -> str:
        return file_digest(self.path)


class ParquetRows:
    """Rows of a Parquet file, one row group in memory at a time (extra `data`)."""

    unit = "row"

    def __init__(self, path: Path) -> None:
        parquet = _needed("pyarrow.parquet", "a Parquet file", path)
        self.path, self.name, self.folder = path, str(path), path.parent
        try:
            self._file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise InputError(f"{path} cannot be read as Parquet: {error}.") from error
        groups = self._file.metadata
        self._ends: list[int] = []
        for group in range(groups.num_row_groups):
            self._ends.append(groups.row_group(group).num_rows + (self._ends[-1] if self._ends else 0))
        self._group, self._table = -1, None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        group = next(number for number, end in enumerate(self._ends) if index < end)
        if group != self._group:
            try:
                self._group, self._table = group, self._file.read_row_group(group)
            except (OSError, ValueError) as error:
                raise PromptError(f"the row cannot be read: {error}") from error
        begin = self._ends[group - 1] if group else 0
        table: Any = self._table
        return _without_none(table.slice(index - begin, 1).to_pylist()[0])

    def number(self, index: int) -> int:
        return index + 1

    def digest(self) -> str:
        return file_digest(self.path)


class Rows:
    """A `datasets.Dataset` or a list of mappings; relative paths start at the working directory."""

    unit = "row"

    def __init__(self, rows: Sequence[Any], name: str = "the data", folder: Path = Path()) -> None:
        self._rows, self.name, self.folder = rows, name, folder

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return _without_none(self._rows[index])

    def number(self, index: int) -> int:
        return index + 1

    def digest(self) -> str:
        known = getattr(self._rows, "_fingerprint", None)  # changes with every change of a datasets.Dataset
        if isinstance(known, str):
            return known
        whole = hashlib.sha256()
        for row in self._rows:
            whole.update(json.dumps(row, default=_described, sort_keys=True).encode("utf-8", "surrogatepass"))
        return whole.hexdigest()


def find_lines(path: Path) -> Iterator[Line]:
    """Yield the non-blank lines of a file. InputError if it cannot be read."""
    try:
        with open_regular(path) as stream:
            number = offset = 0
            while piece := stream.readline(_PIECE):  # a line may have any length
                number += 1
                if number == 1:
                    refuse_pointer(piece, str(path), InputError)
                size, filled = len(piece), bool(piece.strip())
                while not piece.endswith(b"\n") and (piece := stream.readline(_PIECE)):
                    size, filled = size + len(piece), filled or bool(piece.strip())
                if filled:
                    yield Line(number, offset, size)
                offset += size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def read_line(path: Path, line: Line) -> Any:
    """Return the JSON value of a line or item. PromptError with the cause, without the position."""
    if line.size > LINE_LIMIT:
        raise PromptError(f"the line has {line.size:,} bytes, more than the {LINE_LIMIT:,} that one may have")
    try:
        with open_regular(path) as stream:
            stream.seek(line.offset)
            data = stream.read(line.size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse(data)


def parse(data: bytes) -> Any:
    """Parse the JSON value of a line. PromptError with the cause."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise PromptError(f"not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error
    except RecursionError as error:
        raise PromptError("a value is nested too deeply to be read") from error
    except ValueError as error:
        raise PromptError(f"not valid JSON: {error}") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()


def _find_items(path: Path) -> list[Line] | None:
    """Return the items of a file that is one JSON list; None for JSON Lines, whose lines may be lists of messages."""
    try:
        with open_regular(path) as stream:
            lines = iter(lambda: stream.readline(LINE_LIMIT + 1), b"")
            first = next((line for line in lines if line.strip()), b"").removeprefix(b"\xef\xbb\xbf")
            if not first.lstrip().startswith(b"["):
                return None
            if len(first) <= LINE_LIMIT and _is_conversation(first.strip()):  # a longer line is no record
                return None
            stream.seek(0)
            data = stream.read(LIST_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > LIST_LIMIT:
        raise InputError(
            f"{path} is one JSON list of more than {LIST_LIMIT:,} bytes; write one item on each line (JSON Lines) instead."
        )
    return _items(data, path)


def _is_conversation(line: bytes) -> bool:
    """Return whether a line is a complete list of messages, or at least not a list of something else."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.endswith(b"]")  # a faulty line, or the first line of a longer list
    return bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _items(data: bytes, path: Path) -> list[Line]:
    """Return the positions of a list's items. In Latin-1 a byte is a character, and JSON's syntax is ASCII."""
    text, decode = data.decode("latin-1"), json.JSONDecoder().raw_decode
    place, found = data.index(b"[") + 1, list[Line]()
    try:
        while (place := _skip(data, place)) < len(data) and data[place : place + 1] != b"]":
            end = decode(text, place)[1]
            found.append(Line(len(found) + 1, place, end - place))
            place = _skip(data, end)
            if data[place : place + 1] == b",":
                place += 1
            elif data[place : place + 1] != b"]":
                raise ValueError("expected a comma or the end of the list")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: item {len(found) + 1} of the list is not valid JSON: {error}.") from error
    if place >= len(data):
        raise InputError(f"{path}: the list is not closed after item {len(found)}; the file is incomplete.")
    return found


def _skip(data: bytes, place: int) -> int:
    while data[place : place + 1] and data[place] in _BLANK:
        place += 1
    return place


def _needed(package: str, what: str, path: Path) -> Any:
    import importlib

    if not path.exists():
        raise InputError(f"{path} cannot be read: no such file.")
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{path} is {what}, which needs the extra 'data': pip install 'vitrail[data]'; or write JSON Lines."
        ) from error


def _without_none(value: Any) -> Any:
    """Return a row without the null columns that a table adds for other rows."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value


def _described(value: Any) -> str:
    """Return a JSON replacement for a value that has no JSON form."""
    content = (
        value.tobytes()
        if hasattr(value, "tobytes")
        else bytes(value)
        if isinstance(value, bytes)
        else repr(value)
    )
    digest = hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()
    return f"{type(value).__name__} {getattr(value, 'size', '')} {digest}"
