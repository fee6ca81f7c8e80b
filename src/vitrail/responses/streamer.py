"""ResponseStream: a streamer for generate() that parses an answer and passes its pieces to a callback."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vitrail.responses.events import Piece, Response
from vitrail.responses.parser import ResponseParser


class ResponseStream:
    """Parses streamed ids and calls `hear` with each piece.

    Args:
        tokenizer: As for `ResponseParser`.
        hear: Callback for each piece.

    Attributes:
        first: `time.perf_counter()` at the first generated id; None before.
    """

    def __init__(self, tokenizer: Any, hear: Callable[[Piece], None]) -> None:
        self.first: float | None = None
        self._tokenizer = tokenizer
        self._parser: ResponseParser | None = None
        self._hear = hear

    def put(self, value: Any) -> None:
        """Process ids: the prompt in the first call, generated ids in later ones."""
        ids = value.flatten().tolist()
        if self._parser is None:
            self._parser = ResponseParser(self._tokenizer, prompt=ids)
            return
        self.first = self.first or time.perf_counter()
        for piece in self._parser.feed(ids):
            self._hear(piece)

    def end(self) -> None:
        """End the answer and pass on the held-back pieces."""
        for piece in self._parser.finish() if self._parser else ():
            self._hear(piece)

    @property
    def response(self) -> Response:
        """The answer so far."""
        return Response() if self._parser is None else self._parser.response
