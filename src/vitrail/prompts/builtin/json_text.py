"""write_json, read_json_or_text: JSON in Mistral's prompts, with the place in errors."""

from __future__ import annotations

import json
from typing import Any

from vitrail.errors import PromptError


def write_json(value: Any, place: str) -> str:
    """Write `value` as JSON with Python's separators and unescaped characters.

    Raises:
        PromptError: `value` has no JSON form; with `place`.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"{place}: cannot be written as JSON: {error}") from error


def read_json_or_text(text: str, place: str) -> Any:
    """Parse `text` as JSON; {} for an empty text, the text itself if it is no JSON.

    Raises:
        PromptError: An integer has too many digits, or the nesting is too deep; with `place`.
    """
    if not text:
        return {}
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{place}: this JSON cannot be read: {error}") from error
