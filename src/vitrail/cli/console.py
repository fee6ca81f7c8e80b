"""PlainConsole: rich's console without terminal control characters in texts. Import it where it is used."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from vitrail.cli.output import printable


class PlainConsole(Console):
    """A Console that removes terminal control characters from texts; its own styles and movements stay."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the cleaned segments of a renderable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def clear_live(self) -> None:
        """Remove a bar, also one that Ctrl-C interrupted before its start."""
        with suppress(IndexError):
            super().clear_live()

    def pop_render_hook(self) -> None:
        """Remove the hook, if any: an IndexError here would replace the KeyboardInterrupt."""
        with suppress(IndexError):
            super().pop_render_hook()
