"""read_tools: tool definitions for prompts; calls and results are in turns.py and writing.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vitrail.errors import PromptError
from vitrail.prompts.builtin.schema import check_schema

_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")  # `$` allows a final newline, as in mistral-common


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Read definitions in OpenAI's form.

    Returns:
        Their keys that prompts contain, in the order of prompts.

    Raises:
        PromptError: A definition is malformed; with its place.
    """
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise PromptError(f"tools: expected a list of tools, got {type(tools).__name__}")
    return [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def check_name(name: str, place: str) -> None:
    """Raise PromptError unless `name` is a valid function name."""
    if not _NAME.match(name):
        raise PromptError(
            f"{place}: a function's name is 1 to 64 of the characters a-z, A-Z, 0-9, _ and -; got {name[:80]!r}"
        )


def _tool(tool: Any, place: str) -> dict[str, Any]:
    tool = _fields(tool, place)
    if tool.get("type", "function") != "function":
        raise PromptError(f"{place}.type: expected 'function', got {tool['type']!r}")
    if "function" not in tool:
        raise PromptError(f"{place}.function: missing; a tool is {{'type': 'function', 'function': {{…}}}}")
    function = _fields(tool["function"], f"{place}.function")
    name, description = function.get("name"), function.get("description")
    parameters, strict = function.get("parameters"), function.get("strict")
    if not isinstance(name, str):
        raise PromptError(f"{place}.function.name: expected a text, got {type(name).__name__}")
    if description is not None and not isinstance(description, str):
        raise PromptError(f"{place}.function.description: expected a text, got {type(description).__name__}")
    if strict is not None and strict not in (True, False):
        raise PromptError(f"{place}.function.strict: expected true or false, got {strict!r}")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or not all(isinstance(key, str) for key in parameters):
        raise PromptError(f"{place}.function.parameters: expected an object, got {type(parameters).__name__}")
    check_schema(parameters, f"{place}.function.parameters")
    check_name(name, f"{place}.function.name")
    shown = {"name": name, "description": description or "", "parameters": parameters}
    return {"type": "function", "function": shown}


def _fields(value: Any, place: str) -> Mapping[str, Any]:
    dump = getattr(value, "model_dump", None)  # mistral-common's tools are pydantic models
    fields = dump() if callable(dump) else value
    if not isinstance(fields, Mapping):
        raise PromptError(f"{place}: expected an object, got {type(value).__name__}")
    return fields
