"""Budget: limits of steps, characters and seconds for one rendering of a checkpoint's template."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

from vitrail.errors import PromptError

MAX_STEPS = 2_000_000  # loop iterations, calls and list entries; 10,000 turns of a conversation need 100,000
MAX_CHARS = 1 << 28  # characters of all texts of one rendering, intermediate ones included
MAX_SECONDS = 20.0
_MAX_WIDTH = 10_000  # characters of a padded or indented field
_WIDE_FORMAT = re.compile(r"\d{5}|\*|:[^{}]*\{")  # widths of five digits, from an argument, or nested
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs")


class Budget:
    """Remaining allowance of one rendering. Every method raises PromptError once it is used up.

    Attributes:
        steps: Remaining steps.
        chars: Remaining characters.
        deadline: End of the rendering in `time.monotonic()` seconds.
    """

    def __init__(self, steps: int = MAX_STEPS, chars: int = MAX_CHARS, seconds: float = MAX_SECONDS) -> None:
        self.steps = steps
        self.chars = chars
        self.deadline = time.monotonic() + seconds

    def spend(self, steps: int = 1) -> None:
        """Subtract `steps` from the allowance, and check the deadline every 256 steps."""
        self.steps -= steps
        if self.steps < 0:
            raise PromptError("the chat template was stopped: it takes too many steps")
        if self.steps % 256 < steps and time.monotonic() > self.deadline:
            raise PromptError("the chat template was stopped: it takes too long")

    def reserve(self, chars: int) -> None:
        """Subtract the size of a text of `chars` characters before it is built."""
        self.chars -= chars
        if self.chars < 0:
            raise PromptError("the chat template was stopped: it makes too much text")

    def weigh(self, value: Any) -> Any:
        """Subtract the size of `value` from the allowance and return it."""
        if isinstance(value, (str, bytes)):
            self.reserve(len(value))
        elif isinstance(value, (list, tuple, dict, set)):
            self.spend(len(value))
        elif isinstance(value, int) and value.bit_length() > 256:
            raise PromptError("the chat template was stopped: it computes with numbers that are too large")
        return value

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield `items`, one step each."""
        for item in items:
            self.spend()
            yield item

    def range(self, *bounds: int) -> range:
        """Return Python's `range(*bounds)`, one step for each number."""
        numbers = range(*bounds)
        self.spend(len(numbers))
        return numbers

    def joined(self, parts: Iterable[Any], separator: str = "") -> str:
        """Return `separator.join(parts)`, one step for each part."""
        texts = [str(part) for part in self.counted(parts)]
        self.reserve(sum(map(len, texts)) + len(separator) * max(0, len(texts) - 1))
        return separator.join(texts)

    def replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        """Return `text.replace(old, new, count)`."""
        hits = text.count(old) if count < 0 else min(count, text.count(old))
        self.reserve(len(text) + hits * max(0, len(new) - len(old)))
        return text.replace(old, new, count)

    def operate(self, operator: str, left: Any, right: Any, compute: Callable[[], Any]) -> Any:
        """Return `left operator right` (`compute()`) for one of + * % ** after a check of the result's size."""
        if operator == "**" and (abs(left) > 1 << 64 or not -64 <= right <= 64):
            raise PromptError("the chat template was stopped: it computes with numbers that are too large")
        if operator == "*":
            self._reserve_repetition(left, right)
            self._reserve_repetition(right, left)
        if operator == "%" and isinstance(left, str):
            check_format(left)
        if operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            self._reserve_sequence(left, len(left) + len(right))
            return compute()
        return self.weigh(compute())

    def call(self, method: Any, args: Sequence[Any]) -> None:
        """Subtract the cost of a call of `method`; refuse methods with results of unlimited size."""
        self.spend()
        method = getattr(method, "__wrapped__", method)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, (int, float, bytes)) or (isinstance(owner, str) and name == "translate"):
            raise PromptError(f"the chat template was stopped: it may not call {type(owner).__name__}.{name}")
        if not isinstance(owner, str):
            return
        if name in _PADDING and any(isinstance(arg, int) and arg > _MAX_WIDTH for arg in args):
            raise PromptError(f"the chat template was stopped: {name} of more than {_MAX_WIDTH} characters")
        if name in ("format", "format_map"):
            check_format(owner)
        if name == "replace" and len(args) >= 2 and all(isinstance(arg, str) for arg in args[:2]):
            self.reserve(len(owner) + owner.count(args[0]) * len(args[1]))
        if name == "join" and args and isinstance(args[0], Sized):
            self.reserve(len(owner) * len(args[0]))

    def _reserve_repetition(self, sequence: Any, times: Any) -> None:
        if isinstance(sequence, (str, list, tuple, bytes)) and isinstance(times, int):
            self._reserve_sequence(sequence, len(sequence) * max(0, times))

    def _reserve_sequence(self, sequence: Sized, length: int) -> None:
        if isinstance(sequence, str):
            self.reserve(length)
        else:
            self.spend(length)


def check_format(pattern: str) -> None:
    """Raise PromptError for a format text with a large or computed width."""
    if _WIDE_FORMAT.search(pattern):
        raise PromptError("the chat template was stopped: it formats with a large or computed width")


def indent_width(width: Any) -> Any:
    """Return the width of the filters `indent` and `center`; PromptError above the limit."""
    length = width if isinstance(width, int) else len(str(width))
    if length > _MAX_WIDTH:
        raise PromptError(
            f"the chat template was stopped: it indents or centers by more than {_MAX_WIDTH} characters"
        )
    return width
