"""Merge neighbouring messages into one turn, as mistral-common does (docs/formats.md, "Prompts": merging)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.pieces import Image
from vitrail.prompts.builtin.turns import NO_ID, Call, Content, Item, Turn

BETWEEN = "\n\n"  # what joins the texts of different messages


@dataclass(frozen=True, slots=True)
class Merged:
    """One or several messages as one turn. `messages`: their places in the conversation."""

    role: str
    content: Content
    messages: tuple[int, ...]
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None
    prefix: bool = False


def merge_contents(contents: Iterable[Content], within: str) -> Content:
    """Several contents as one: texts that meet are joined, by `within` inside a message; empty ones are skipped.

    A text if there is nothing else, else a tuple in which no two texts are neighbours.
    """
    merged: list[Item] = []
    text: list[str] = []
    for content in contents:
        joint = BETWEEN
        for item in (content,) if isinstance(content, str) else content:
            if not isinstance(item, str):
                if text:
                    merged.append("".join(text))
                merged.append(item)
                text = []
            elif item:
                text.append(joint + item if text else item)
                joint = within
    if not merged:
        return "".join(text)
    return (*merged, "".join(text)) if text else tuple(merged)


def merge_turns(turns: Sequence[Turn], format: Format) -> list[Merged]:
    """Runs of user and of assistant messages as one turn each; system and tool messages stay alone.

    A system message cuts a run, and so does another weight, so that what is not learned stays apart. Where system texts
    go into user turns the system message is left out here, and a conversation that does not begin with a user gets an
    empty user turn. Tool results are sorted where the format wants it.
    """
    merged: list[Merged] = []
    called: list[str] = []  # the ids of all calls since the last results
    for (role, _), group in groupby(turns, key=lambda turn: (turn.role, turn.weight)):
        run = list(group)
        if role == "tool":
            merged.extend(_results(run, called, format))
            called = []
        elif role != "system":
            merged.append(_run(run, format))
            called.extend(call.id for call in merged[-1].calls)
        elif format.system == "block":
            merged.extend(_run([turn], format) for turn in run)
    if format.system != "block" and (not merged or merged[0].role != "user"):
        merged.insert(0, Merged("user", "", ()))
    return merged


def sort_results(run: Sequence[Turn], called: Sequence[str]) -> list[Turn]:
    """The results of a run in the order of their calls; those of unknown calls last."""
    calls = {identity: place for place, identity in enumerate(called)}
    results = {turn.call_id: place for place, turn in enumerate(run)}
    return sorted(
        run, key=lambda turn: (calls.get(turn.call_id or NO_ID, len(called)), results[turn.call_id])
    )


def system_text(turns: Sequence[Turn], format: Format) -> str:
    """The texts of all system messages as one, for formats that put it into a user turn."""
    texts = [
        merge_contents([turn.content], format.joint)
        for turn in turns
        if turn.role == "system" and turn.content
    ]
    return BETWEEN.join(text for text in texts if isinstance(text, str))


def image_first(content: Content) -> Content:
    """A text followed by an image with the image in front; every other order stays."""
    if not isinstance(content, tuple) or len(content) < 2 or not isinstance(content[-1], Image):
        return content
    moves = all(isinstance(item, str) for item in content[:-1])
    return (content[-1], *content[:-1]) if moves else content


def _run(run: Sequence[Turn], format: Format) -> Merged:
    content = merge_contents([turn.content for turn in run], format.joint)
    calls = tuple(call for turn in run for call in turn.calls)
    return Merged(run[0].role, content, _places(run), calls, prefix=run[-1].prefix)


def _results(run: Sequence[Turn], called: Sequence[str], format: Format) -> list[Merged]:
    ordered = sort_results(run, called) if format.sorts_results else run
    return [
        Merged("tool", merge_contents([t.content], format.joint), (t.index,), call_id=t.call_id, name=t.name)
        for t in ordered
    ]


def _places(run: Sequence[Turn]) -> tuple[int, ...]:
    return tuple(turn.index for turn in run)
