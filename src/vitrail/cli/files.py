"""Reading of JSON files named on the command line, with a size limit; '-' is standard input."""

import sys
from pathlib import Path
from typing import Any

from vitrail.errors import InputError


def read_input(name: str) -> bytes:
    """Read a file, or standard input for '-', up to one byte more than the limit of JSON files."""
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
    """Read and check the tools of a file. Raises PromptError that names the wrong tool."""
    from vitrail.prompts.builtin.tools import read_tools as check_tools
    from vitrail.prompts.conversation_file import read_tools_file

    tools = read_tools_file(read_input(name), name)
    check_tools(tools)
    return tools
