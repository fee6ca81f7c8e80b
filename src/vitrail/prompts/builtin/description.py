"""What distinguishes one prompt format from another, as data. The formats themselves stand in versions.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Efforts:
    """The values of `reasoning_effort` that a model was trained with, and the one it has when none is asked for."""

    values: tuple[str, ...]
    default: str


@dataclass(frozen=True, slots=True)
class Format:
    """One prompt format. Facts: mistral-common's formats, and for "card" the rules in docs/prompts.md.

    system: where system texts go: into the first or last user turn, or into blocks of their own.
    tools: the user turn before whose begin the tools stand; "inside" one, or nowhere.
    calls: how calls are written; call_ids: whether with their ids; old_calls: also those before the last user turn.
    results: how tool results are written; sorts_results: in the order of the calls instead of the given one.
    exclusive: an assistant's message is either text or calls; strips: spaces at the end of its text are cut.
    images, thinks: the roles that may show images and think. joint: what joins texts of one message.
    ids: the form of call ids; pairing: what calls and results are compared by; ordered: roles follow Mistral's order.
    efforts: model settings, None where the format has none. drops: whether the oldest turns may be dropped.
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
