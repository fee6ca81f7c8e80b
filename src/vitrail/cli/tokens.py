"""`vitrail tokens IMAGE…`: image tokens, from sizes and settings without a model."""

from typing import Any

import click

from vitrail.cli.images import open_pages
from vitrail.cli.options import (
    Named,
    complete_files,
    image_tokens_option,
    model_option,
    pdf_options,
    source_options,
    take_pdf_limits,
)
from vitrail.cli.output import echo, echo_json, one_line
from vitrail.cli.source import Source, embedded

EXAMPLES = """\b
Examples:
  vitrail tokens sign.png
  vitrail tokens scan.pdf --json | jq .tokens
  vitrail tokens scan.pdf --model mistral-community/pixtral-12b --max-image-tokens 500
"""


@click.command("tokens", epilog=EXAMPLES)
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE…", type=Named(), shell_complete=complete_files
)
@model_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object an image: file, page, size, read_at, tokens.",
)
@image_tokens_option
@source_options
@pdf_options
def tokens(
    images: tuple[str, ...],
    model: str | None,
    as_json: bool,
    max_image_tokens: int | None,
    format_name: str | None,
    revision: str | None,
    **limits: Any,
) -> None:
    """Say what each IMAGE costs in tokens, and the size it is read at (width×height); of a PDF, each page."""
    from vitrail.auto import AutoProcessor

    pdf_limits = take_pdf_limits(limits)
    sizes = [
        (name, number, page.size)
        for name in images
        for number, page in enumerate(open_pages(name, pdf_limits), 1)
    ]
    source = Source.open(embedded() if model is None else model, format_name, revision)
    processor = AutoProcessor.from_pretrained(source.folder, format=source.format)
    for name, page, (width, height) in sizes:
        grid = processor.image_grid(height, width, max_image_tokens)
        if as_json:
            size, read_at = (width, height), (grid.width, grid.height)
            echo_json({"file": name, "page": page, "size": size, "read_at": read_at, "tokens": grid.tokens})
        else:
            echo(f"{grid.tokens:>7}  {width}×{height} read at {grid.width}×{grid.height}  {one_line(name)}")
