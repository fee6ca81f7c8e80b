"""check_schema: checks that a tool's `parameters` are a JSON schema (draft 7)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from vitrail.errors import PromptError

Check: TypeAlias = Callable[[Any, str], None]

_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


def check_schema(value: Any, place: str) -> None:
    """Raise PromptError with the place of the fault unless `value` is a draft-7 schema."""
    try:
        _schema(value, place)
    except RecursionError as error:
        raise PromptError(f"{place}: the schema is nested too deeply") from error


def _schema(value: Any, place: str) -> None:
    if isinstance(value, bool):
        return
    if not isinstance(value, dict):
        raise _fault(place, "a schema (an object or true or false)", value)
    for name, check in _KEYWORDS.items():
        if name in value:
            check(value[name], f"{place}.{name}")


def _kind(wanted: str, *types: type) -> Check:
    def check(value: Any, place: str) -> None:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise _fault(place, wanted, value)

    return check


_text, _flag, _array = _kind("a text", str), _kind("true or false", bool), _kind("a list", list)
_number = _kind("a number", int, float)


def _above_zero(value: Any, place: str) -> None:
    _number(value, place)
    if value <= 0:
        raise _fault(place, "a number above 0", value)


def _count(value: Any, place: str) -> None:
    _number(value, place)
    if not value >= 0 or value != value // 1:
        raise _fault(place, "a whole number of at least 0", value)


def _pattern(value: Any, place: str) -> None:
    _text(value, place)
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise _fault(place, f"a regular expression ({error})", value) from error


def _names(value: Any, place: str) -> None:
    _array(value, place)
    for item in value:
        _text(item, place)
    if len(set(value)) != len(value):
        raise _fault(place, "names that differ", value)


def _schemas(value: Any, place: str) -> None:
    _array(value, place)
    if not value:
        raise _fault(place, "at least one schema", value)
    for index, item in enumerate(value):
        _schema(item, f"{place}[{index}]")


def _schema_map(value: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        raise _fault(place, "an object of schemas", value)
    for name, item in value.items():
        _schema(item, f"{place}.{name}")


def _pattern_map(value: Any, place: str) -> None:
    _schema_map(value, place)
    for name in value:
        _pattern(name, place)


def _items(value: Any, place: str) -> None:
    (_schemas if isinstance(value, list) else _schema)(value, place)


def _dependencies(value: Any, place: str) -> None:
    if not isinstance(value, Mapping):
        raise _fault(place, "an object", value)
    for name, item in value.items():
        (_names if isinstance(item, list) else _schema)(item, f"{place}.{name}")


def _type(value: Any, place: str) -> None:
    names = value if isinstance(value, list) else [value]
    known = all(isinstance(name, str) and name in _TYPES for name in names)
    if not names or not known or len(set(names)) != len(names):
        raise _fault(place, f"one or several of {', '.join(_TYPES)}", value)


def _fault(place: str, wanted: str, value: Any) -> PromptError:
    shown = repr(value)
    return PromptError(
        f"{place}: parameters are a JSON schema (draft 7); expected {wanted}, got {shown[:60]}"
    )


_KEYWORDS: dict[str, Check] = {
    **dict.fromkeys(("$id", "$schema", "$ref", "$comment", "title", "description", "format"), _text),
    **dict.fromkeys(("contentMediaType", "contentEncoding"), _text),
    **dict.fromkeys(("readOnly", "uniqueItems"), _flag),
    **dict.fromkeys(("examples", "enum"), _array),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"), _number),
    **dict.fromkeys(
        ("maxLength", "minLength", "maxItems", "minItems", "maxProperties", "minProperties"), _count
    ),
    **dict.fromkeys(("additionalItems", "contains", "additionalProperties", "propertyNames"), _schema),
    **dict.fromkeys(("if", "then", "else", "not"), _schema),
    **dict.fromkeys(("definitions", "properties"), _schema_map),
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _schemas),
    "multipleOf": _above_zero,
    "pattern": _pattern,
    "patternProperties": _pattern_map,
    "items": _items,
    "required": _names,
    "dependencies": _dependencies,
    "type": _type,
}
