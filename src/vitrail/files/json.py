"""Bounded reading of JSON files. The meaning of keys belongs to the callers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.errors import CheckpointError, ConfigError
from vitrail.files.lfs import refuse_pointer
from vitrail.files.opening import open_regular

# The largest JSON files of the family are Tekken's tokenizer.json, 17 MB, and conversations with images in them.
JSON_LIMIT = 64 * 1024 * 1024
SETTINGS_LIMIT = (
    4 * 1024 * 1024
)  # published ones have 200 kB; in memory they take about twenty times that, and are copied often
_DEPTH = 100  # lists and objects within each other; copying and writing recurse, and files of the family have about 10


def read_json(path: str | os.PathLike[str], *, limit: int = SETTINGS_LIMIT) -> dict[str, Any]:
    """Read the object in a JSON file of at most `limit` bytes.

    Raises:
        CheckpointError: naming the file, if it is missing, too large, not UTF-8, not JSON, nested too deeply or not an
            object.
    """
    file = Path(path)
    try:
        with open_regular(file) as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{file} cannot be read: {reason}.") from error
    if len(data) > limit:
        raise CheckpointError(f"{file} is larger than the {limit:,} bytes that such a file may have.")
    return parse_json_object(data, str(file))


def parse_json_object(data: bytes, name: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """Parse the JSON object in `data`; `name` is its source in errors.

    With `unique_keys` a repeated key is an error; else its last value counts.
    """
    refuse_pointer(data, name)
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique if unique_keys else None)
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{name} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}."
        ) from error
    except RecursionError as error:
        raise CheckpointError(f"{name} nests its values too deeply to be read.") from error
    except ValueError as error:  # JSONDecodeError, a repeated key, or a number with too many digits
        raise CheckpointError(f"{name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} must hold a JSON object, but holds {_kind(value)}.")
    if not is_shallow(value):
        raise CheckpointError(f"{name} nests its values too deeply to be read.")
    return value


def is_shallow(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether a JSON value nests at most `depth` lists and objects."""
    level = [value] if isinstance(value, (dict, list)) else []
    while level and depth:
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for values in inner for one in values if isinstance(one, (dict, list))]
        depth -= 1
    return not level


def json_text(values: Mapping[str, Any], owner: str) -> str:
    """Return indented JSON with sorted keys and a line feed. Raises ConfigError for a value that JSON cannot hold."""
    try:
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{owner} holds a value that JSON cannot: {str(error)[:200]}.") from None
    return text


def shown_json(values: Mapping[str, Any]) -> str:
    """Return the same for display: a value that JSON cannot hold in Python's notation."""
    held = {str(name): value for name, value in values.items()}
    try:
        return json.dumps(held, indent=2, sort_keys=True, ensure_ascii=False, default=repr) + "\n"
    except (TypeError, ValueError, RecursionError):  # keys of several types, or a list within itself
        return f"{held!r}\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:100]!r} appears twice")
    return result


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
