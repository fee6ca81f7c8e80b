"""merge_turns: adjacent messages as one turn, as in mistral-common (docs/formats.md, "Prompts": merging)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from vitrail.prompts.builtin.description import Format
from vitrail.prompts.builtin.pieces import Image
from vitrail.prompts.builtin.turns import NO_ID, Call, Content, Item, Turn

BETWEEN = "\n\n"  # separator of the texts of different messages


@dataclass(frozen=True, slots=True)
class Merged:
    """One or several messages as one turn.

    Attributes:
        messages: Places of the messages in the conversation.
        prefix: Whether the turn stays open at its end.
    """

    role: str
    content: Content
    messages: tuple[int, ...]
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None
    prefix: bool = False


def merge_contents(contents: Iterable[Content], within: str) -> Content:
    """Merge contents into one: adjacent texts are joined, empty ones skipped.

    Args:
        contents: One content for each message.
        within: Separator of the texts of one message; BETWEEN separates messages.

    Returns:
        A `str` if there are only texts, otherwise a tuple without adjacent texts.
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
    """Merge runs of user and of assistant messages into one turn each; system and tool messages stay single.

    A system message or another weight ends a run, so that the mask of learned messages stays exact. For formats with
    system texts in user turns, system messages are left out here, and a conversation that begins with another role
    gets an empty user turn in front. Tool results are sorted if the format requires it.
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
    """Sort the results of a run in the order of their calls (`called`: ids), those of unknown calls last."""
    calls = {identity: place for place, identity in enumerate(called)}
    results = {turn.call_id: place for place, turn in enumerate(run)}
    return sorted(
        run, key=lambda turn: (calls.get(turn.call_id or NO_ID, len(called)), results[turn.call_id])
    )


def system_text(turns: Sequence[Turn], format: Format) -> str:
    """Join the texts of all system messages, for formats with system texts in a user turn."""
    texts = [
        merge_contents([turn.content], format.joint)
        for turn in turns
        if turn.role == "system" and turn.content
    ]
    return BETWEEN.join(text for text in texts if isinstance(text, str))


def image_first(content: Content) -> Content:
    """Move the image of texts with one image at the end to the front; any other content stays."""
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
