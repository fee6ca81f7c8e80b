"""`vitrail tokens IMAGE…`: what images cost in tokens. Reads sizes and settings; loads no model."""

from typing import Any

import click

from vitrail.cli.images import open_pages
from vitrail.cli.options import (
    complete_files,
    image_tokens_option,
    model_option,
    pdf_options,
    source_options,
    take_pdf_limits,
)
from vitrail.cli.output import echo
from vitrail.cli.source import Source, embedded

EXAMPLES = """\b
Examples:
  vitrail tokens sign.png
  vitrail tokens scan.pdf --model mistral-community/pixtral-12b --max-image-tokens 500
"""


@click.command("tokens", epilog=EXAMPLES)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…", shell_complete=complete_files)
@model_option
@image_tokens_option
@source_options
@pdf_options
def tokens(
    images: tuple[str, ...],
    model: str | None,
    max_image_tokens: int | None,
    format_name: str | None,
    revision: str | None,
    **limits: Any,
) -> None:
    """Say what each IMAGE costs in tokens, and the size it is read at (width×height); of a PDF, each page."""
    from vitrail.auto import AutoProcessor

    pdf_limits = take_pdf_limits(limits)
    sizes = [(name, page.size) for name in images for page in open_pages(name, pdf_limits)]
    source = Source.open(embedded() if model is None else model, format_name, revision)
    processor = AutoProcessor.from_pretrained(source.folder, format=source.format)
    for name, (width, height) in sizes:
        grid = processor.image_grid(height, width, max_image_tokens)
        echo(f"{grid.tokens:>7}  {width}×{height} read at {grid.width}×{grid.height}  {name}")
