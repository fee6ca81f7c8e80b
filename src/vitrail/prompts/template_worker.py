"""The separate process for untrusted chat templates, with JSON results; files/worker_process.py starts and limits it."""

from __future__ import annotations

import json
from typing import Any

from vitrail.errors import PromptError
from vitrail.files.formatting import first_line
from vitrail.files.worker_process import serve
from vitrail.prompts.template_engine import run
from vitrail.prompts.template_request import TemplateRequest

MEMORY = 2 << 30  # bytes of address space
MAX_CHARS = 1 << 22  # characters of a prompt, in addition to the bytes of its request
_MAX_FAULT = 10_000  # characters of an error message


def main() -> None:
    """Serve requests until the parent closes the pipe."""
    serve(_answer, MEMORY)


def _answer(written: bytes) -> bytes:
    try:
        masked, base, answers = run(TemplateRequest.from_bytes(written))
        if len(masked) > MAX_CHARS + len(written):
            raise PromptError("the chat template was stopped: it makes too much text")
        return _bytes({"masked": masked, "base": base, "answers": answers})
    except PromptError as error:
        return _bytes({"fault": str(error)[:_MAX_FAULT]})
    except MemoryError:
        return _bytes({"fault": "the chat template was stopped: it takes too much memory", "memory": True})
    except Exception as error:  # a template can raise any error of Python
        return _bytes(
            {"fault": f"the chat template failed: {type(error).__name__}: {first_line(error)[:_MAX_FAULT]}"}
        )


def _bytes(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass")
