"""Options that several commands share: the limits of PDFs, and how an answer is drawn. No command's work."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.inputs.pdf import PdfLimits

Command = TypeVar("Command", bound=Callable[..., Any])

_PDF = {"pdf_pages": "max_pages", "pdf_pixels": "max_pixels", "pdf_seconds": "max_seconds"}


def pdf_options(command: Command) -> Command:
    """Adds --pdf-pages, --pdf-pixels and --pdf-seconds; `take_pdf_limits` reads them."""
    for option in (
        click.option(
            "--pdf-seconds",
            type=click.FloatRange(min=0, min_open=True),
            metavar="S",
            help="Longest time to render a PDF. [default: 60]",
        ),
        click.option(
            "--pdf-pixels",
            type=click.IntRange(min=1, max=100_000_000),
            metavar="N",
            help="Most pixels of a PDF's page; a larger one is rendered coarser. [default: 8 million]",
        ),
        click.option(
            "--pdf-pages",
            type=click.IntRange(min=1),
            metavar="N",
            help="Most pages of a PDF; a longer one is refused. [default: 50]",
        ),
    ):
        command = option(command)
    return command


def take_pdf_limits(options: dict[str, Any]) -> "PdfLimits":
    """The limits that `pdf_options` say; they are taken out of `options`."""
    from vitrail.inputs.pdf import PdfLimits

    given = {name: options.pop(flag, None) for flag, name in _PDF.items()}
    return PdfLimits(**{name: value for name, value in given.items() if value is not None})


def drawing_options(command: Command) -> Command:
    """Adds --temperature, --top-p, --top-k and --seed; `refuse_idle` checks them."""
    for option in (
        click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Same seed, same draw."),
        click.option(
            "--top-k", type=click.IntRange(min=1), metavar="K", help="Draw from the K likeliest tokens."
        ),
        click.option(
            "--top-p",
            type=click.FloatRange(min=0, max=1, min_open=True),
            metavar="P",
            help="Draw from the likeliest tokens that make up P.",
        ),
        click.option(
            "--temperature",
            type=click.FloatRange(min=0),
            default=0.0,
            metavar="T",
            help="Draw from the probabilities at this temperature. [default: 0, always the likeliest]",
        ),
    ):
        command = option(command)
    return command


def refuse_idle(options: dict[str, Any]) -> None:
    """Options that shape a draw do nothing without one, so they are refused rather than ignored."""
    idle = [name for name in ("top_p", "top_k", "seed") if options[name] is not None]
    if idle and not options["temperature"]:
        flag = "--" + idle[0].replace("_", "-")
        raise InputError(
            f"{flag} needs --temperature above 0; without it the likeliest token is always taken"
        )
