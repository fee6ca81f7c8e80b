"""render: messages to a prompt with a checkpoint's Jinja template, in a separate process with limits.

template_engine.py renders, in the process of template_worker.py; Vitrail's own templates run in the current process.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any

from vitrail.errors import PromptError, UnsupportedError
from vitrail.files.worker_process import WorkerEndedError, WorkerProcess
from vitrail.prompts.control_token_mask import ControlTokenMask
from vitrail.prompts.messages import Message
from vitrail.prompts.rendered_prompt import Place, RenderedPrompt
from vitrail.prompts.template_request import TemplateRequest

MAX_TEMPLATE = 1 << 20  # characters of a template's source; published ones have less than 20,000
MAX_SECONDS = 15.0  # wall-clock time of one rendering
_BYTES_A_SECOND = 1e6  # the time limit grows by a second for this many bytes of conversation
MAX_ANSWER = 1 << 28  # bytes of a result; template_worker.py limits its characters first
# SHA-256 of Vitrail's own templates: trusted, so rendered without a separate process.
_OWN_TEMPLATES = {
    "b59e1e6be8c8b6c37cc207a05f0c3e23a93539c8154704d885e914ea41c83791": "DEFAULT_TEMPLATE of render.py",
    "fca5596d09d7c89641e3a4051f9c1198607ac1305e989a29403d6ea46452fbee": "the embedded reader's chat_template.jinja",
}
_worker = WorkerProcess(
    "vitrail.prompts.template_worker",
    ("jinja2", "markupsafe"),
    answer_bytes=MAX_ANSWER,
    work="the chat templates of checkpoints are run",
    advice="let this program start processes, or use a built-in prompt format (format=)",
)


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    controls: Iterable[str] = (),
    special_tokens: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    find_answers: bool = False,
) -> RenderedPrompt:
    """Render one conversation; the spans of the result mark the template's own control tokens.

    Args:
        template: Jinja source; its names and filters are those of transformers' templates.
        messages: The conversation.
        add_generation_prompt: Open the assistant's turn at the end.
        continue_final_message: Leave the last message open.
        tools: JSON schemas of tools.
        documents: Documents with "title" and "text".
        controls: The tokenizer's control tokens; typed by a user they stay text (control_token_mask.py).
        special_tokens: Special tokens by variable name (`bos_token`, …).
        variables: Further variables of the template.
        find_answers: Record the places of `{% generation %}` blocks in `answers`.

    Raises:
        PromptError: The template fails, refuses the conversation, does not use a given variable or exceeds a limit.
        UnsupportedError: The separate process cannot be started.
    """
    if continue_final_message and add_generation_prompt:
        raise PromptError(
            "add_generation_prompt opens a new turn, continue_final_message goes on with the last; choose one"
        )
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise PromptError(f"a chat template is a text of at most {MAX_TEMPLATE:,} characters")
    request = TemplateRequest(
        template,
        tuple(messages),
        None if tools is None else [_schema(tool) for tool in tools],
        None if documents is None else [_document(document) for document in documents],
        bool(add_generation_prompt),
        bool(continue_final_message),
        tuple(controls),
        special_tokens or {},
        variables or {},
        datetime.now(),
        find_answers,
    )
    masked, base, answers = (_run_here if _digest(template) in _OWN_TEMPLATES else _run_apart)(request)
    rendered = ControlTokenMask.at(base, request.controls).rendered(masked)
    return replace(rendered, answers=tuple(answers)) if find_answers else rendered


def _run_here(request: TemplateRequest) -> tuple[str, int, list[Place]]:
    from vitrail.prompts.template_engine import run

    try:
        return run(request)
    except (RecursionError, MemoryError) as error:
        raise PromptError("the messages are nested too deeply, or take too much memory") from error


def _run_apart(request: TemplateRequest) -> tuple[str, int, list[Place]]:
    """Call `template_engine.run` in the process for untrusted templates."""
    asked = request.to_bytes()
    seconds = MAX_SECONDS + len(asked) / _BYTES_A_SECOND
    try:
        written = _worker.ask(asked, seconds)
    except WorkerEndedError as error:
        if error.timed_out:
            raise PromptError(
                f"the chat template was stopped: it takes too long, more than {seconds:.1f} s"
            ) from error
        raise PromptError(
            f"the chat template was stopped: it ended its process ({_name(error.status)}), as by values that are "
            "nested too deeply or take too much memory"
        ) from error
    try:
        answer = json.loads(written.decode("utf-8", "surrogatepass"))
        if not isinstance(answer, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise _strange_answer() from error
    fault = answer.get("fault")
    if isinstance(fault, str):
        if answer.get("memory"):
            _worker.stop()  # out of memory: its state is undefined
        raise PromptError(fault)
    masked, base = answer.get("masked"), answer.get("base")
    if not isinstance(masked, str) or type(base) is not int or not ControlTokenMask.may_start_at(base):
        raise _strange_answer()
    return masked, base, [_place(found, len(masked)) for found in answer.get("answers") or ()]


def _place(found: Any, length: int) -> Place:
    if (
        isinstance(found, list)
        and [type(end) for end in found] == [int, int]
        and 0 <= found[0] <= found[1] <= length
    ):
        return found[0], found[1]
    raise _strange_answer()


def _strange_answer() -> PromptError:
    return PromptError("the chat template was stopped: its process does not answer as it should")


def _name(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"status {status}"


@lru_cache(maxsize=16)
def _digest(template: str) -> str:
    return sha256(template.encode("utf-8", "surrogatepass")).hexdigest()


def _document(document: Any) -> dict[str, Any]:
    if isinstance(document, Mapping):
        return dict(document)
    raise PromptError(f"documents: expected dicts with 'title' and 'text', got {type(document).__name__}")


def _schema(tool: Any) -> dict[str, Any]:
    if isinstance(tool, Mapping):
        return dict(tool)
    dump = getattr(tool, "model_dump", None)
    if callable(dump):
        return dict(dump())
    raise UnsupportedError(
        f"tools are described by JSON schemas (dicts); making one from {tool!r} is not supported"
    )
