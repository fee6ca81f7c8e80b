"""Saving and loading of conversations: written atomically, read with a size limit."""

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitrail.cli.files import read_input
from vitrail.errors import InputError, PromptError
from vitrail.files.opening import home_path

MOST_MESSAGES = 10_000
MOST_IMAGES = 1_000  # parts; a PDF is one of them


def save_messages(messages: Sequence[dict[str, Any]], name: str, *, overwrite: bool = False) -> Path:
    """Write {"messages": […]} as JSON, for `vitrail prompt` and `vitrail ask --conversation`; return the path.

    The file appears complete or not at all.

    Raises:
        InputError: an existing file (unless `overwrite`), or one that cannot be written.
    """
    path = home_path(name)
    text = json.dumps({"messages": list(messages)}, ensure_ascii=False, indent=2) + "\n"
    if path.is_dir() or (path.exists() and not overwrite):
        what = "is a folder" if path.is_dir() else "exists already"
        raise InputError(f"{path} {what}; choose another name, or write /save! to replace a file")
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def load_messages(name: str) -> list[dict[str, Any]]:
    """Read the messages of a file with one conversation. Raises InputError or PromptError that names the file."""
    from vitrail.prompts.conversation_file import read_conversations

    path = home_path(name)
    found = read_conversations(read_input(str(path)), str(path))
    if len(found) != 1:
        raise PromptError(f"{path} holds {len(found)} conversations; one is expected")
    messages = found[0].messages
    if not messages or not all(isinstance(message, dict) for message in messages):
        raise PromptError(f"{path}: expected a list of messages, each with 'role' and 'content'")
    if len(messages) > MOST_MESSAGES:
        raise PromptError(f"{path} has {len(messages):,} messages; at most {MOST_MESSAGES:,} are read")
    if (images := sum(map(count_images, messages))) > MOST_IMAGES:
        raise PromptError(f"{path} has {images:,} images; at most {MOST_IMAGES:,} are read")
    if found[0].tools or found[0].continue_final_message:
        warnings.warn(f"{path}: tools and continue_final_message are not used here", stacklevel=2)
    return messages


def count_images(message: dict[str, Any]) -> int:
    """Return the number of images and files in a message."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    return sum(isinstance(part, dict) and part.get("type") not in ("text", "thinking") for part in parts)
