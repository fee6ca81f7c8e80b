"""JSON as Mistral's prompts write it: read and written again by Python, with errors that say where. No tools here."""

from __future__ import annotations

import json
from typing import Any

from vitrail.errors import PromptError


def write_json(value: Any, place: str) -> str:
    """`value` as JSON with Python's separators and unescaped characters. Raises PromptError for what is no JSON."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{place}: cannot be written as JSON: {error}") from error


def read_json_or_text(text: str, place: str) -> Any:
    """The value that `text` is JSON of; {} for an empty text, and the text itself if it is no JSON.

    Raises PromptError for JSON that Python does not read back: numbers of thousands of digits, or too deep a nesting.
    """
    if not text:
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: this JSON cannot be read: {error}") from error
