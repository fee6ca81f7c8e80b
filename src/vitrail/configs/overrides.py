"""Keyword overrides of a configuration read from a file: nested ones are merged, dropped keys named in a warning."""

import warnings
from collections.abc import Mapping
from typing import Any

from vitrail.configs.rope import check_given

SPELLINGS = {
    "torch_dtype": "dtype",
    "norm_eps": "rms_norm_eps",
    "image_token_id": "image_token_index",
    "_name_or_path": "name_or_path",
}
_ROPE = ("rope_parameters", "rope_scaling")
_NOT_GEOMETRY = ("name_or_path", "dtype", "architectures")


def merge_overrides(read: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of `read` with those of `given` over them, each under the spelling in which it was read.

    Rotary settings without a rope_type are merged into those read; every other object replaces the one read, with a
    warning that names the lost keys.
    """
    names = {SPELLINGS.get(name, name) for name in given}
    merged = {name: value for name, value in read.items() if SPELLINGS.get(name, name) not in names}
    if names & {"rope_theta", *_ROPE}:
        merged, given = _split_rope(read, merged), _rope_merged(read, given)
    for name, value in given.items():
        before = read.get(name)
        if name not in _ROPE and isinstance(before, Mapping) and isinstance(value, Mapping):
            warn_dropped(name, [key for key in before if key not in value])
        merged[name] = value
    return merged


def warn_replaced(name: str, read: Any, given: Any) -> None:
    """Warn of keys read from the file that `given` lacks or has only as defaults."""
    own, usual = vars(given), vars(type(given)())
    warn_dropped(
        name,
        [
            key
            for key, value in vars(read).items()
            if key not in _NOT_GEOMETRY
            and value != own.get(key)
            and (key not in own or own[key] == usual.get(key))
        ],
    )


def warn_dropped(name: str, keys: list[str]) -> None:
    """Warn that the value given for `name` replaces the whole object read and drops these keys."""
    if keys:
        warnings.warn(
            f"{name} takes the place of the one in the file, whose {', '.join(sorted(keys))} are dropped; "
            "give a dict of single keys to change only those.",
            stacklevel=6,
        )


def _rope(read: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the rotary base (None: absent) and the other settings read, in either spelling."""
    settings = next((dict(read[name]) for name in _ROPE if isinstance(read.get(name), Mapping)), {})
    return settings.pop("rope_theta", read.get("rope_theta")), settings


def _split_rope(read: Mapping[str, Any], merged: dict[str, Any]) -> dict[str, Any]:
    """Return `merged` with rotary settings in the older spelling, which keywords can replace one by one."""
    theta, settings = _rope(read)
    kept = {name: value for name, value in merged.items() if name not in ("rope_theta", *_ROPE)}
    said = any(name in read for name in _ROPE)
    return (
        kept
        | ({} if theta is None else {"rope_theta": theta})
        | ({"rope_scaling": settings or None} if said else {})
    )


def _rope_merged(read: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` with rotary settings under one name, merged over those read unless they have a type."""
    rest = {key: value for key, value in given.items() if key not in _ROPE}
    name = next((name for name in _ROPE if given.get(name) is not None), None)
    if name is None:
        return rest | ({"rope_scaling": None} if any(key in given for key in _ROPE) else {})
    if not isinstance(given[name], Mapping):
        return dict(given)
    _, settings = _rope(read)
    value = dict(given[name])
    if "rope_type" in value or "type" in value:
        check_given(value, value.get("rope_type") or value.get("type") or "default")
        warn_dropped(name, [key for key in settings if key not in (*value, "type", "rope_type")])
    else:
        check_given(value, settings.get("rope_type") or settings.get("type") or "default")
        value = {**settings, **value}
    return {**rest, "rope_parameters": value}
