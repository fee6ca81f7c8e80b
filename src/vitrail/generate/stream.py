"""Text streamers for generate(): print text as ids arrive, or iterate over it from another thread."""

import queue
import sys
from typing import Any

import torch
from torch import Tensor

from vitrail.arguments import check_methods, checked
from vitrail.errors import InputError
from vitrail.responses.text_pieces import Detokenizer, TextPieces


@checked
class TextStreamer:
    """Prints text to standard output as generate() produces it; pass it as `streamer=`.

    Subclasses override `on_finalized_text`. Supports one row.

    Args:
        tokenizer: has `decode(ids, **kwargs)`: a tokenizer or a processor.
        skip_prompt: leave out the prompt, which generate() passes first.
        decode_kwargs: for `decode`, for example skip_special_tokens=True.
    """

    def __init__(self, tokenizer: Detokenizer, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        check_methods("tokenizer", tokenizer, "decode")
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self._pieces = TextPieces(tokenizer, **decode_kwargs)

    def put(self, value: Tensor) -> None:
        """Receive the prompt (1, T) or the next ids (1,).

        Raises:
            InputError: more than one row.
        """
        if (value.dim() > 1 and value.shape[0] > 1) or value.dim() > 2:
            raise InputError(f"a text streamer shows one row, got ids of the shape {tuple(value.shape)}.")
        if value.is_meta or value.layout != torch.strided:
            raise InputError("a text streamer shows ids; this tensor has no values.")
        prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if prompt and self.skip_prompt:
            return
        self.on_finalized_text(self._pieces.add(value.flatten().tolist()))

    def end(self) -> None:
        """Flush held-back text; the next `put` begins a new text."""
        self.next_tokens_are_prompt = True
        self.on_finalized_text(self._pieces.end(), stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece to standard output, and a newline after the last one."""
        sys.stdout.write(text + ("\n" if stream_end else ""))
        sys.stdout.flush()


@checked
class TextIteratorStreamer(TextStreamer):
    """An iterator over text pieces, for use from another thread than generate()'s.

    Args:
        tokenizer, skip_prompt, decode_kwargs: see TextStreamer.
        timeout: seconds to wait for a piece, after which `queue.Empty` is raised; None waits for ever. An error in
            generate() ends the iteration with that error, so that it never blocks for ever.
    """

    def __init__(
        self,
        tokenizer: Detokenizer,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: queue.Queue[str | BaseException | None] = queue.Queue()
        self.stop_signal = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Put a piece into the queue, and the stop signal after the last one."""
        self.text_queue.put(text)
        if stream_end:
            self.text_queue.put(self.stop_signal)

    def fail(self, error: BaseException) -> None:
        """End the iteration with an error; called by generate() on failure."""
        self.text_queue.put(error)

    def __iter__(self) -> "TextIteratorStreamer":
        return self

    def __next__(self) -> str:
        value = self.text_queue.get(timeout=self.timeout)
        if isinstance(value, str):
            return value
        if value is None:
            raise StopIteration
        raise value
