"""ResponseParser: the ids of an answer to text, reasoning and tool calls, streaming (pieces: events.py).

Control tokens are recognised by id: a "[TOOL_CALLS]" spelled in ordinary tokens is text. Ids are processed one by
one, so the result does not depend on the division of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from vitrail.arguments import check_methods, checked
from vitrail.errors import InputError
from vitrail.responses.control_names import control_names
from vitrail.responses.events import (
    ArgumentsDelta,
    Fault,
    Piece,
    ReasoningDelta,
    Response,
    ResponseBuilder,
    TextDelta,
)
from vitrail.responses.ids import to_ids
from vitrail.responses.text_pieces import TextPieces
from vitrail.responses.tool_calls import ARGS, CALL_ID, END_CALLS, CallReader, new_call_id

CALLS, THINK, END_THINK = "[TOOL_CALLS]", "[THINK]", "[/THINK]"
# Tokens that begin another role's turn, and therefore end the model's own.
OTHER_TURNS = ("<s>", "[INST]", "[SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[MODEL_SETTINGS]")
_NAMES = (CALLS, CALL_ID, ARGS, END_CALLS, THINK, END_THINK, "</s>", *OTHER_TURNS)


@checked
class ResponseParser:
    """Converts the ids of one answer to pieces as they arrive; `response` is the whole so far.

    Args:
        tokenizer: One of Vitrail's tokenizers, or a processor; its control tokens are found by name.
        prompt: Ids of the prompt; a prompt that ends inside [THINK] begins the answer with reasoning.
        ids: "model": the call ids of the model (after the arguments in v3 to v7), or of `new_id` for calls without
            one; "fresh": ids of `new_id` for all calls, at their begin.
        new_id: Creates a call id.

    Raises:
        InputError: An argument is of the wrong kind.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: Any = None,
        ids: Literal["model", "fresh"] = "model",
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        if ids not in ("model", "fresh"):
            raise InputError(f'ids is "model" or "fresh"; got {ids!r}')
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer) if _is_processor(tokenizer) else tokenizer
        check_methods("tokenizer", tokenizer, "decode", "convert_ids_to_tokens")
        self._controls = control_names(tokenizer, _NAMES)
        self._end = tokenizer.eos_token_id
        self._pad = tokenizer.pad_token_id
        self._builder = ResponseBuilder()
        self._pieces: list[Piece] = []
        self._decoder = TextPieces(tokenizer, skip_special_tokens=True)
        self._calls = CallReader(self._pieces_append, new_id, fresh=ids == "fresh")
        self._take: Callable[[str], None] = self._text
        if prompt is not None and is_structured(tokenizer, (), prompt):
            self._take = self._reasoning
        self._ended_by: str | None = None
        self._rest: list[int] = []
        self._count = 0
        self._finished = False

    def feed(self, ids: Any) -> list[Piece]:
        """Process one id or several.

        Returns:
            The pieces that are certain now.

        Raises:
            InputError: `ids` are no ids, or the answer is finished.
        """
        if self._finished:
            raise InputError("this answer is finished; a new one needs a new ResponseParser")
        for index in to_ids(ids):
            self._read(index)
            self._count += 1
        return self._given()

    def finish(self) -> list[Piece]:
        """End the answer and return the held-back pieces; [] on a second call."""
        if not self._finished:
            self._finished = True
            self._leave(cut=True)
        return self._given()

    @property
    def done(self) -> bool:
        """Whether the model ended its turn; later ids are not part of the answer."""
        return self._ended_by is not None

    @property
    def response(self) -> Response:
        """The answer so far; complete after `finish`."""
        return self._builder.response(self._ended_by, tuple(self._rest))

    def _pieces_append(self, piece: Piece) -> None:
        self._pieces.append(piece)

    def _given(self) -> list[Piece]:
        pieces = _joined(self._pieces)
        self._pieces.clear()
        self._builder.add(pieces)
        return pieces

    def _read(self, index: int) -> None:
        name = self._controls.get(index)
        if self._ended_by is not None:
            if index not in (self._pad, self._end):
                self._rest.append(index)
        elif index == self._end or name in OTHER_TURNS:
            self._end_turn(index, name or "</s>")
        elif index == self._pad:
            return  # padding of a batch
        elif name is None:
            self._take(self._decoder.add([index]))
        else:
            self._control(name)

    def _end_turn(self, index: int, name: str) -> None:
        self._leave(cut=False)
        self._ended_by = name
        if index != self._end:
            hint = "" if self._count else "; give the new ids only, without the prompt"
            self._pieces.append(Fault(f"the model began another turn with {name}, which is left out{hint}"))
            self._rest.append(index)

    def _control(self, name: str) -> None:
        self._take(self._decoder.end())
        thinking = self._take == self._reasoning
        if name == CALLS:
            self._leave(cut=False)
            self._calls.enter()
            self._take = self._calls.take
        elif name == THINK and not thinking:
            self._leave(cut=False)
            self._take = self._reasoning
            self._pieces.append(ReasoningDelta("", opens=True))
        elif name == END_THINK and thinking:
            self._take = self._text
            self._pieces.append(ReasoningDelta("", closes=True))
        elif name == THINK:
            self._pieces.append(ReasoningDelta("", opens=True))  # a new chunk; the previous one stays open
        elif not name.startswith("["):
            pass  # no control token of Mistral's formats, for example the location tokens of the embedded reader
        elif name not in (CALL_ID, ARGS, END_CALLS) or not self._calls.control(name):
            self._pieces.append(Fault(f"{name} has no meaning where it stands; it is left out"))

    def _leave(self, *, cut: bool) -> None:
        """End the current text, reasoning or calls."""
        self._take(self._decoder.end())
        if self._take == self._calls.take:
            self._calls.leave(cut=cut)
        self._take = self._text

    def _text(self, text: str) -> None:
        if text:
            self._pieces.append(TextDelta(text))

    def _reasoning(self, text: str) -> None:
        if text:
            self._pieces.append(ReasoningDelta(text))


def parse_response(tokenizer: Any, ids: Any, **options: Any) -> Response:
    """Convert the ids of one whole answer, without its prompt, to text, reasoning and tool calls.

    Args:
        tokenizer: As for `ResponseParser`.
        ids: The generated ids.
        **options: Keywords of `ResponseParser`.

    Returns:
        The response; violations of the format are in `faults` and never raise.

    Raises:
        InputError: An argument is of the wrong kind.
    """
    parser = ResponseParser(tokenizer, **options)
    parser.feed(ids)
    parser.finish()
    return parser.response


def is_structured(tokenizer: Any, ids: Any, prompt: Any = ()) -> bool:
    """Return whether an answer has tool calls or reasoning, or a prompt that ends inside [THINK]."""
    names = control_names(tokenizer, _NAMES)
    last = next((names[i] for i in reversed(to_ids(prompt)) if i in names), None)
    return last == THINK or any(names.get(i) in (CALLS, THINK, END_THINK) for i in to_ids(ids))


def _is_processor(value: Any) -> bool:
    return hasattr(value, "image_processor")


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Join consecutive pieces of the same text."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and _continues(runs[-1][-1], piece):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return [run[0] if len(run) == 1 else _as_one(run) for run in runs]


def _continues(last: Piece, piece: Piece) -> bool:
    if isinstance(piece, ReasoningDelta):
        return isinstance(last, ReasoningDelta) and not piece.opens
    return isinstance(piece, (TextDelta, ArgumentsDelta)) and type(last) is type(piece)


def _as_one(run: Sequence[Any]) -> Piece:
    first, last, text = run[0], run[-1], "".join([piece.text for piece in run])
    if isinstance(first, ReasoningDelta):
        return ReasoningDelta(text, first.opens, last.closes)
    return TextDelta(text) if isinstance(first, TextDelta) else ArgumentsDelta(last.index, text)
