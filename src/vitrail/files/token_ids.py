"""TokenIds: control ids and vocabulary size from a tokenizer's file, and the choice of that file. Encodes nothing.

Three forms: tekken.json, sentencepiece's *.model (a protobuf whose field 1 repeats the pieces), tokenizer.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vitrail.errors import CheckpointError, InputError
from vitrail.files.json import JSON_LIMIT, read_json
from vitrail.files.lfs import refuse_pointer
from vitrail.files.opening import open_regular

TEKKEN: Final = "tekken.json"
TOKENIZER_JSON: Final = "tokenizer.json"
MODES: Final = ("auto", "mistral", "hf")
_VERSIONED = re.compile(r".*\.model\.v(\d{1,3})(?:m(\d{1,3}))?", re.ASCII)
_MODEL_LIMIT = 64 * 1024 * 1024
# Control tokens of tekken files up to v7, which have no list of their own (mistral-common's defaults).
_TEKKEN_CONTROLS: Final = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TokenIds:
    """The number of ids (the highest plus one) and the ids of control tokens, from a tokenizer's file."""

    file: Path
    size: int
    controls: Mapping[str, int]


def choose_tokenizer_file(names: Iterable[str], mode: str = "auto") -> str | None:
    """Return the tokenizer's file to use among those of a folder; None without one of the wanted kind.

    Args:
        mode: "auto": tekken.json, else the latest *.model.v*, else tokenizer.json, else a *.model without a version;
            "mistral": the same without tokenizer.json; "hf": tokenizer.json before the others.

    Raises:
        InputError: an unknown mode.
    """
    if mode not in MODES:
        raise InputError(f"tokenizer_mode must be one of {', '.join(MODES)}; got {mode!r}.")
    present = sorted(names)
    versioned = sorted(filter(_VERSIONED.fullmatch, present), key=lambda n: (version_of(n), n), reverse=True)
    native = [TEKKEN, *versioned]
    other = [] if mode == "mistral" else [TOKENIZER_JSON]
    ordered = [*other, *native] if mode == "hf" else [*native, *other]
    return next((n for n in [*ordered, *(n for n in present if n.endswith(".model"))] if n in present), None)


def version_of(name: str) -> tuple[int, int]:
    """Return version and image version in the name of a *.model.v* file; (0, 0) without one."""
    found = _VERSIONED.fullmatch(name)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def read_token_ids(file: Path) -> TokenIds:
    """Read a tokenizer's file in any of the three forms. CheckpointError for anything else."""
    if file.name == TEKKEN:
        return _tekken(file)
    if file.suffix == ".json":
        return _tokenizer_json(file)
    return _sentencepiece(file)


def _tekken(file: Path) -> TokenIds:
    data = read_json(file, limit=JSON_LIMIT)
    config = data.get("config")
    size = config.get("default_vocab_size") if isinstance(config, dict) else None
    if not isinstance(size, int) or not _natural(size):
        raise CheckpointError(f"{file} has no default_vocab_size in its config; it is no Tekken file.")
    listed = data.get("special_tokens")
    if listed is None:
        return TokenIds(file, size, {text: index for index, text in enumerate(_TEKKEN_CONTROLS)})
    return TokenIds(file, size, dict(_ranked(listed, file, "rank", "token_str")))


def _tokenizer_json(file: Path) -> TokenIds:
    data = read_json(file, limit=JSON_LIMIT)
    model = data.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict) and all(map(_natural, vocabulary.values())):
        highest = max(vocabulary.values(), default=-1)
    elif isinstance(vocabulary, list):
        highest = len(vocabulary) - 1
    else:
        raise CheckpointError(f"{file} has no vocabulary; it is no file of the tokenizers library.")
    controls = dict(_ranked(data.get("added_tokens") or [], file, "id", "content"))
    return TokenIds(file, max([highest, *controls.values()]) + 1, controls)


def _ranked(listed: Any, file: Path, number: str, text: str) -> Iterator[tuple[str, int]]:
    for entry in listed if isinstance(listed, list) else [None]:
        if (
            not isinstance(entry, dict)
            or not _natural(entry.get(number))
            or not isinstance(entry.get(text), str)
        ):
            raise CheckpointError(
                f"{file}: its special tokens must be a list of objects with {number} and {text}."
            )
        yield entry[text], entry[number]


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _sentencepiece(file: Path) -> TokenIds:
    try:
        with open_regular(file) as stream:
            data = stream.read(_MODEL_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}.") from error
    if len(data) > _MODEL_LIMIT:
        raise CheckpointError(f"{file} is larger than the {_MODEL_LIMIT:,} bytes that such a file may have.")
    refuse_pointer(data, str(file))
    controls, size = {}, 0
    try:
        for field, content in _fields(data):
            if field == 1 and isinstance(content, bytes):
                piece = dict(_fields(content))
                if piece.get(3, 1) in (2, 3, 4):  # unknown, control, user-defined
                    controls[bytes(piece[1]).decode("utf-8")] = size
                size += 1
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is no sentencepiece model: {error}.") from error
    if not size:
        raise CheckpointError(f"{file} is no sentencepiece model: it holds no pieces.")
    return TokenIds(file, size, controls)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and content of each field of a protobuf message: a number, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(kind)
        if kind == 2:
            length, at = _varint(data, at)
        if length is None or at + length > len(data):
            raise ValueError(f"its bytes make no message at {at}")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"a number at byte {at} has no end")
