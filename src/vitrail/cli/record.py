"""JSON record of an answer, for `vitrail ask --json` and `vitrail chat --json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitrail.responses.reply import Reply


def answer_record(
    reply: Reply,
    model: str,
    *,
    tokens: Mapping[str, int] | None = None,
    more: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the record of `reply`. tokens, more: further counts and keys; seconds: in place of the reply's."""
    return {
        "text": reply.text,
        "reasoning": reply.reasoning,
        "tool_calls": [call.as_openai() for call in reply.tool_calls],
        "faults": list(reply.response.faults),
        "model": model,
        "tokens": {
            "prompt": reply.prompt_tokens,
            **(tokens or {}),
            "images": list(reply.image_tokens),
            "completion": reply.completion_tokens,
        },
        **(more or {}),
        "seconds": {stage: round(spent, 4) for stage, spent in (seconds or reply.seconds).items()},
        "stopped_by": reply.stopped_by,
    }
