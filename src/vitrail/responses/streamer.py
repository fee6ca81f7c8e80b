"""A streamer for generate() that reads an answer as it comes and hands its pieces on. Prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vitrail.responses.events import Piece, Response
from vitrail.responses.parser import ResponseParser


class ResponseStream:
    """Reads ids into pieces and gives each to `hear`; `first`: when (time.perf_counter) the first id came."""

    def __init__(self, tokenizer: Any, hear: Callable[[Piece], None]) -> None:
        self.first: float | None = None
        self._tokenizer = tokenizer
        self._parser: ResponseParser | None = None
        self._hear = hear

    def put(self, value: Any) -> None:
        """Take the prompt, and then the new ids."""
        ids = value.flatten().tolist()
        if self._parser is None:
            self._parser = ResponseParser(self._tokenizer, prompt=ids)
            return
        self.first = self.first or time.perf_counter()
        for piece in self._parser.feed(ids):
            self._hear(piece)

    def end(self) -> None:
        """The answer is complete."""
        for piece in self._parser.finish() if self._parser else ():
            self._hear(piece)

    @property
    def response(self) -> Response:
        """The answer so far."""
        return Response() if self._parser is None else self._parser.response
