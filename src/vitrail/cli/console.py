"""rich's console for tables, trees, bars and spinners, whose texts cannot steer a terminal. Import it where it is used."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from vitrail.cli.output import printable


class PlainConsole(Console):
    """A Console that leaves out of every text what could steer a terminal; its own styles and movements stay."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, cleaned."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def clear_live(self) -> None:
        """Forget a bar; one that Ctrl-C kept from starting may be stopped too."""
        with suppress(IndexError):
            super().clear_live()

    def pop_render_hook(self) -> None:
        """The same for its hook: an IndexError here would take the place of the KeyboardInterrupt."""
        with suppress(IndexError):
            super().pop_render_hook()
