"""`vitrail chat [IMAGE…]`: options. Conversation: cli/chat_room.py."""

from typing import Any

import click

from vitrail.cli.images import STDIN
from vitrail.cli.options import (
    Named,
    answer_options,
    complete_files,
    model_option,
    pdf_options,
    refuse_idle,
    source_options,
    take_generation,
    take_pdf_limits,
)
from vitrail.cli.screen import waiting
from vitrail.cli.source import Source, embedded, read_model
from vitrail.cli.transcript import load_messages
from vitrail.errors import InputError

EXAMPLES = """\b
Examples:
  vitrail chat --model ./pixtral-12b
  vitrail chat invoice.pdf --model ./mistral-small-3.1
  printf '/image sign.png\\nWhat does it say?\\nIn capitals?\\n' | vitrail chat --json
  vitrail chat --load talk.json

Inside: /image, /system, /save, /load, /clear, /retry, /history, /stats, /quit; /help explains them. Ctrl-C ends an
answer, Ctrl-D the conversation. Exit status: 0 it was ended, 2 something was wrong (with input from a pipe: at the first
mistake; one line on stderr says what), 130 interrupted.
"""


@click.command("chat", epilog=EXAMPLES)
@click.argument("images", nargs=-1, metavar="[IMAGE…]", type=Named(), shell_complete=complete_files)
@model_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object for each answer: text, token counts, timings.",
)
@click.option("--system", metavar="TEXT", help="A system prompt.")
@click.option(
    "--load",
    "conversation",
    metavar="FILE",
    type=Named(),
    shell_complete=complete_files,
    help="Go on from a conversation that /save wrote.",
)
@answer_options
@source_options
@pdf_options
def chat(
    images: tuple[str, ...],
    model: str | None,
    as_json: bool,
    system: str | None,
    conversation: str | None,
    adapter: str | None,
    dtype: str | None,
    device: str,
    format_name: str | None,
    revision: str | None,
    **options: Any,
) -> None:
    """Talk with a model about images, on this machine.

    Each IMAGE, a file or a URL, goes with the first message; a PDF counts as its pages. A message is a line, or several
    lines between lines of three quotes. From a pipe, each line is a message, and standard output holds answers only.
    """
    refuse_idle(options)
    if STDIN in images:
        raise InputError("standard input is the conversation; give the image as a file, or use vitrail ask")
    limits = take_pdf_limits(options)
    messages = [] if conversation is None else load_messages(conversation)
    source = Source.open(embedded() if model is None else model, format_name, revision)
    config = read_model(source, with_images=bool(images))
    source.fetch_weights()
    with waiting() as line:
        line.say(f"loading {model or 'the embedded reader'}")
        from vitrail.assistant import load
        from vitrail.cli.chat_commands import run_command
        from vitrail.cli.chat_room import ChatRoom, Settings

        numbers = dtype or ("float32" if model is None else "auto")
        loaded = load(
            source.folder, config=config, format=source.format, dtype=numbers, device=device, adapter=adapter
        )
        settings = Settings(
            model or "embedded",
            as_json=as_json,
            pdf_limits=limits,
            generation=take_generation(options),
            **options,
        )
        room = ChatRoom(loaded.model, loaded.processor, settings, run_command)
    room.begin(messages, system, images)
    room.run()
