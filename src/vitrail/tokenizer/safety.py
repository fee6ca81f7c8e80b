"""Checks of a tokenizer.json before the `tokenizers` library runs it: no text may abort, panic or run away."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vitrail.errors import CheckpointError, VitrailError
from vitrail.files.formatting import first_line
from vitrail.tokenizer.patterns import check_pattern

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MOST_PARTS = 64
_MOST_GROWTH = 64  # times the length of a text
_LONGEST_WORD = 10_000  # letters of a word in WordPiece, whose time grows with the square
_SEQUENCES = ("normalizers", "pretokenizers", "processors", "decoders")
# Parts that are safe with any settings; those in _LIMITED are checked.
_HARMLESS = {
    "normalizer": ("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Strip", "BertNormalizer", "Nmt"),
    "pre_tokenizer": (
        "Metaspace", "Digits", "Whitespace", "WhitespaceSplit", "Punctuation", "BertPreTokenizer", "CharDelimiterSplit",
        "UnicodeScripts",
    ),
    "post_processor": ("ByteLevel",),
    "decoder": ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "WordPiece", "BPEDecoder", "CTC"),
}  # fmt: skip


@contextmanager
def no_panic(what: str, error: type[VitrailError] = CheckpointError) -> Iterator[None]:
    """Turn failures of the library into one error, including its panics, which are no subclass of Exception."""
    try:
        yield
    except (VitrailError, TypeError, UnicodeError, OverflowError, MemoryError):
        raise
    except Exception as fault:  # the library raises bare ones
        raise error(f"{what}: {first_line(fault)}") from fault
    except BaseException as fault:
        if type(fault).__name__ != "PanicException":  # of pyo3; no module exports it
            raise
        raise error(f"{what}: {first_line(fault)}") from fault


def check_backend(backend: Tokenizer, where: str) -> None:
    """Raise CheckpointError for parts with unbounded work, with known panics, or unknown here."""
    for name in _HARMLESS:
        part = getattr(backend, name)
        if part is None:
            continue
        parts = list(_parts(json.loads(part.__getstate__())))
        if len(parts) > _MOST_PARTS:
            raise CheckpointError(f"{where}: its {name} has {len(parts)} parts; at most {_MOST_PARTS} may be")
        growth = 1.0
        for one in parts:
            growth *= _checked(one, name, where, backend)
            if growth > _MOST_GROWTH:
                raise CheckpointError(
                    f"{where}: its {name} makes texts more than {_MOST_GROWTH} times as long"
                )
    longest = getattr(backend.model, "max_input_chars_per_word", 0)
    if longest > _LONGEST_WORD:
        raise CheckpointError(
            f"{where}: max_input_chars_per_word is {longest:,}; at most {_LONGEST_WORD:,} may be"
        )


def _parts(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """List the parts of a component, those of sequences one by one."""
    if state.get("type") != "Sequence":
        yield state
        return
    for name in _SEQUENCES:
        for part in state.get(name, ()):
            yield from _parts(part)


def _checked(part: Mapping[str, Any], name: str, where: str, backend: Tokenizer) -> float:
    """Return the growth factor of a text in a part. Raises CheckpointError for a part that is not safe."""
    kind = part.get("type")
    if kind in _HARMLESS[name]:
        return 1.0
    check = _LIMITED.get((name, str(kind)))
    if check is None:
        raise CheckpointError(f"{where}: its {name} has a part {kind!r}, which is not read here")
    return check(part, f"{where}: its {name}", backend)


def _replace(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    shortest = _pattern(part, where, backend)
    if not shortest:
        raise CheckpointError(f"{where} replaces an empty text")
    return max(1.0, len(part["content"]) / shortest)


def _pattern(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    """Return the length of a part's plain text, or 1 for a regular expression, after its check."""
    pattern = part["pattern"]
    if "Regex" in pattern:
        check_pattern(pattern["Regex"], where)
        return 1.0
    return float(len(pattern["String"]))


def _split(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    _pattern(part, where, backend)
    return 1.0


def _prepend(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    return max(1.0, len(part["prepend"]) / 4)


def _bytes(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    return 3.0  # a letter of three bytes becomes three


def _fixed(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    if not part.get("length"):
        raise CheckpointError(f"{where} cuts texts into pieces of no length")
    return 1.0


def _strip(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    if max(part["start"], part["stop"]) > _MOST_PARTS:
        raise CheckpointError(
            f"{where} strips {max(part['start'], part['stop']):,} letters; at most {_MOST_PARTS}"
        )
    return 1.0


def _template(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    """Check that each text occurs once and each special token has as many ids as texts, all in the vocabulary."""
    known = part["special_tokens"]
    for token in known.values():
        if len(token["ids"]) != len(token["tokens"]):
            raise CheckpointError(f"{where} gives {token['id']!r} {len(token['ids'])} ids and other texts")
        _in_vocabulary(token["ids"], where, backend)
    for form, allowed in (("single", "A"), ("pair", "AB")):
        pieces = part[form]
        texts = [piece["Sequence"]["id"] for piece in pieces if "Sequence" in piece]
        if len(pieces) > _MOST_PARTS or len(set(texts)) != len(texts) or not set(texts) <= set(allowed):
            raise CheckpointError(f"{where} has a {form} that is no order of texts and special tokens")
        for name in (piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece):
            if name not in known:
                raise CheckpointError(f"{where} names {name!r}, which is not among its special_tokens")
    return 1.0


def _ends(part: Mapping[str, Any], where: str, backend: Tokenizer) -> float:
    _in_vocabulary([part["sep"][1], part["cls"][1]], where, backend)
    return 1.0


def _in_vocabulary(ids: list[int], where: str, backend: Tokenizer) -> None:
    for index in ids:
        if backend.id_to_token(index) is None:
            raise CheckpointError(f"{where} adds the id {index}, which the vocabulary does not have")


_LIMITED: dict[tuple[str, str], Callable[[Mapping[str, Any], str, Tokenizer], float]] = {
    ("normalizer", "Replace"): _replace,
    ("normalizer", "Prepend"): _prepend,
    ("normalizer", "ByteLevel"): _bytes,
    ("pre_tokenizer", "Split"): _split,
    ("pre_tokenizer", "ByteLevel"): _bytes,
    ("pre_tokenizer", "FixedLength"): _fixed,
    ("post_processor", "TemplateProcessing"): _template,
    ("post_processor", "BertProcessing"): _ends,
    ("post_processor", "RobertaProcessing"): _ends,
    ("decoder", "Replace"): _replace,
    ("decoder", "Strip"): _strip,
}
