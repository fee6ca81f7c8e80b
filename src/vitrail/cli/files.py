"""JSON files named on the command line, read whole and bounded; '-' is standard input."""

import sys
from pathlib import Path
from typing import Any

from vitrail.errors import InputError


def read_input(name: str) -> bytes:
    """The bytes of a file, or of standard input for '-'; no more than a JSON file may have, and one."""
    from vitrail.files.json import JSON_LIMIT

    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError(
                "'-' reads standard input, which is a terminal or closed; pipe a conversation in"
            )
        return sys.stdin.buffer.read(JSON_LIMIT + 1)
    try:
        with Path(name).open("rb") as stream:
            return stream.read(JSON_LIMIT + 1)
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error


def read_tools(name: str) -> list[Any]:
    """The tools of a file, checked: names, descriptions, schemas. PromptError says which tool is wrong."""
    from vitrail.prompts.builtin.tools import read_tools as check_tools
    from vitrail.prompts.conversation_file import read_tools_file

    tools = read_tools_file(read_input(name), name)
    check_tools(tools)
    return tools
