"""FORMATS: the built-in prompt formats by name; writing.py and card.py write them."""

from __future__ import annotations

from dataclasses import replace

from vitrail.arguments import short
from vitrail.errors import PromptError
from vitrail.prompts.builtin.description import Efforts, Format

_USER = frozenset({"user"})

_V1 = Format(
    "v1",
    system="first user",
    tools="nowhere",
    calls="none",
    results="none",
    exclusive=True,
    strips=False,
    plain_markers=True,
    ids="free",
    pairing="number",
    drops=False,
    infills=False,
)
_V2 = replace(
    _V1,
    name="v2",
    system="last user",
    tools="last user",
    calls="list",
    results="json list",
    call_ids=False,
    old_calls=False,
    strips=True,
    plain_markers=False,
)
_V3 = replace(_V2, name="v3", results="json", call_ids=True, old_calls=True, ids="nine", infills=True)
_V7 = replace(_V3, name="v7", system="block", results="id and content", exclusive=False, drops=True)
_V11 = replace(_V7, name="v11", calls="named", sorts_results=True, images=_USER, pairing="id")
_V13 = replace(
    _V11,
    name="v13",
    tools="first user",
    results="content",
    call_ids=False,
    ids="any",
    thinks=frozenset({"system", "assistant"}),
)
_V15 = replace(
    _V13,
    name="v15",
    images=frozenset({"user", "tool"}),
    thinks=frozenset({"assistant"}),
    joint="",
    settings=True,
    efforts=Efforts(("none", "high"), "none"),
)
_CARD = Format(
    "card",
    system="block",
    tools="inside",
    calls="list",
    results="content",
    sorts_results=True,
    images=frozenset({"user", "assistant", "tool"}),
    joint="",
    ordered=False,
)

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        _V1,
        _V2,
        _V3,
        replace(_V3, name="v3-tekken", images=_USER),
        _V7,
        replace(_V7, name="v7m1", images=_USER),
        replace(_V7, name="v7-tekken", images=_USER),
        _V11,
        _V13,
        _V15,
        _CARD,
    )
}


def find_format(name: str | Format) -> Format:
    """Return the format of a name; a PromptError for an unknown one lists the names."""
    if isinstance(name, Format):
        return name
    if not isinstance(name, str) or name not in FORMATS:
        raise PromptError(f"format is one of {', '.join(FORMATS)}; got {short(name)}")
    return FORMATS[name]
