"""Format: the properties of a prompt format; versions.py lists the formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Efforts:
    """The values of `reasoning_effort` that a model was trained with, and the default."""

    values: tuple[str, ...]
    default: str


@dataclass(frozen=True, slots=True)
class Format:
    """One prompt format. Source: mistral-common; for "card" docs/prompts.md.

    Attributes:
        name: Name for `format=`.
        system: Place of system texts: in the first or last user turn, or in blocks of their own.
        tools: Place of tools: before the first or last user turn, "inside" a user turn, or nowhere.
        calls: Form of calls: one JSON list, or names with arguments.
        results: Form of tool results.
        call_ids: Whether call ids are written.
        old_calls: Whether calls and results before the last user turn are written.
        sorts_results: Whether results come in the order of their calls instead of the given order.
        exclusive: Whether an assistant's message has either text or calls.
        strips: Whether spaces at the end of an assistant's text are removed.
        plain_markers: Whether [INST] and [/INST] are text instead of control tokens.
        images: Roles with images.
        thinks: Roles with thinking parts.
        joint: Separator of the texts of one message.
        ids: Form of call ids: "free", "nine" letters and digits, or "any" text.
        pairing: Whether calls and results are compared by number or by id.
        ordered: Whether roles must follow Mistral's order.
        settings: Whether a block of model settings is written.
        efforts: Values of `reasoning_effort`; None if unknown or without settings.
        drops: Whether the oldest turns may be left out.
        infills: Whether there are fill-in-the-middle prompts.
    """

    name: str
    system: Literal["first user", "last user", "block"]
    tools: Literal["nowhere", "first user", "last user", "inside"]
    calls: Literal["none", "list", "named"]
    results: Literal["none", "json list", "json", "id and content", "content"]
    call_ids: bool = True
    old_calls: bool = True
    sorts_results: bool = False
    exclusive: bool = False
    strips: bool = True
    plain_markers: bool = False
    images: frozenset[str] = frozenset()
    thinks: frozenset[str] = frozenset()
    joint: str = "\n\n"
    ids: Literal["free", "nine", "any"] = "nine"
    pairing: Literal["number", "id"] = "id"
    ordered: bool = True
    settings: bool = False
    efforts: Efforts | None = None
    drops: bool = True
    infills: bool = True
