"""Commands inside `vitrail chat`, lines that begin with a slash. Messages: chat_room.py."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from vitrail.cli.chat_room import ChatRoom
from vitrail.cli.output import echo_json
from vitrail.cli.transcript import load_messages, save_messages
from vitrail.errors import InputError


@dataclass(frozen=True)
class Command:
    """A command. run: called with (chat, text after the name). usage, help: a line of /help."""

    run: Callable[[ChatRoom, str], None]
    usage: str
    help: str


def run_command(room: ChatRoom, name: str, rest: str) -> None:
    """Run the command `name` with the text after it. Raises InputError for an unknown one."""
    if name in COMMANDS:
        return COMMANDS[name].run(room, rest)
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean /{near[0]}?" if near else "/help shows all;"
    raise InputError(
        f"there is no command /{name}; {hint} a message may begin with a slash if a space stands before it"
    )


def _image(room: ChatRoom, rest: str) -> None:
    if not rest:
        names = [str(one.raw.get("path") or one.raw.get("url")) for one in room.pending]
        room.tell("\n".join(names) if names else "no image waits for the next message; /image PATH adds one.")
        return
    attachment = room.attach(_unquoted(rest))
    room.tell(f"{_images(len(attachment.images))}, {attachment.tokens:,} tokens, for the next message.")


def _system(room: ChatRoom, rest: str) -> None:
    if not rest:
        room.tell(room.dialogue.system or "there is no system prompt; /system TEXT sets one.")
        return
    room.dialogue.system = None if rest == "-" else rest
    room.tell("no system prompt from now on." if rest == "-" else "set, for the whole conversation.")


def _save(room: ChatRoom, rest: str, overwrite: bool = False) -> None:
    if not rest:
        raise InputError("/save needs the name of a file")
    if not room.dialogue.messages:
        raise InputError("there is nothing to save yet")
    name = _unquoted(rest)
    known = name in room.files
    path = save_messages(room.dialogue.messages, name, overwrite=overwrite or known)
    room.files.add(name)
    room.tell(f"{len(room.dialogue.messages)} messages are in {path}.")


def _load(room: ChatRoom, rest: str) -> None:
    if not rest:
        raise InputError("/load needs the name of a file")
    room.load(load_messages(_unquoted(rest)))
    room.files.add(_unquoted(rest))
    messages = room.dialogue.messages
    asked = messages[-1].get("role") == "user"
    room.tell(
        f"{len(messages)} messages.{' The last one is a question: /retry answers it.' if asked else ''}"
    )


def _clear(room: ChatRoom, rest: str) -> None:
    room.dialogue.clear()
    room.pending.clear()
    room.tell("forgotten; the system prompt stays.")


def _retry(room: ChatRoom, rest: str) -> None:
    room.answer()


def _history(room: ChatRoom, rest: str) -> None:
    lines = []
    for message in room.dialogue.messages:
        content = message.get("content")
        parts = [content] if isinstance(content, str) else [_shown(part) for part in content or ()]
        lines.append(f"{message.get('role')}: {' '.join(parts)}")
    room.tell("\n".join(lines) if lines else "nothing was said yet.")


def _stats(room: ChatRoom, rest: str) -> None:
    last, totals = room.last, room.totals
    prompt = 0 if last is None else last.prompt_tokens
    images = [] if last is None else list(last.image_tokens)
    if room.settings.as_json:
        record = {"cached": room.dialogue.cached, "prompt": prompt, "images": images, **asdict(totals)}
        record["seconds"] = round(totals.seconds, 4)
        echo_json({"stats": record})
        return
    lines = [f"cached         {room.dialogue.cached:,} positions"]
    if last is not None:
        cost = f", {sum(images):,} of them for {_images(len(images))}" if images else ""
        lines += [
            f"last prompt    {prompt:,} tokens{cost}",
            f"  of it        {last.reused:,} reused, {last.computed:,} computed, {_images(last.images_encoded)} encoded",
            f"last answer    {last.completion_tokens:,} tokens; {last.seconds['first_token']:.2f} s to the first, "
            f"{last.seconds['total']:.2f} s in all",
        ]
    lines.append(
        f"all {totals.answers:,} answers  {totals.reused:,} reused, {totals.computed:,} computed, "
        f"{_images(totals.encoded)} encoded, {totals.completion:,} drawn, {totals.seconds:.2f} s"
    )
    room.tell("\n".join(lines))


def _help(room: ChatRoom, rest: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    lines.append('A message of several lines stands between lines of """, or its lines end in a backslash.')
    room.tell("\n".join(lines))


def _quit(room: ChatRoom, rest: str) -> None:
    room.going_on = False


COMMANDS = {
    "image": Command(
        _image, "/image PATH", "show an image or a PDF with the next message; alone: what waits"
    ),
    "system": Command(_system, "/system TEXT", "set the system prompt; - removes it; alone: show it"),
    "save": Command(_save, "/save FILE", "write the conversation, as vitrail ask and vitrail prompt read it"),
    "save!": Command(
        lambda room, rest: _save(room, rest, True), "/save! FILE", "the same, into a file that exists"
    ),
    "load": Command(_load, "/load FILE", "go on from a saved conversation"),
    "clear": Command(_clear, "/clear", "forget the conversation, but not the system prompt"),
    "retry": Command(_retry, "/retry", "answer the last question again (the same, at temperature 0)"),
    "history": Command(_history, "/history", "show the conversation"),
    "stats": Command(_stats, "/stats", "show what was computed, and what was reused"),
    "help": Command(_help, "/help", "show this"),
    "quit": Command(_quit, "/quit", "leave, as Ctrl-D does"),
}


def _unquoted(text: str) -> str:
    """Return a typed or dropped path without the quotes around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _images(number: int) -> str:
    return "1 image" if number == 1 else f"{number:,} images"


def _shown(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    if part.get("type") == "text":
        return str(part.get("text", ""))
    if part.get("type") == "thinking":
        return "[reasoning]"
    source = part.get("path") or part.get("url") or part.get("type")
    return f"[{str(source)[:80]}]"
