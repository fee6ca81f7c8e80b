"""`vitrail ask PICTURE… QUESTION`: its options and what it prints. The work is done in cli/answer.py."""

import json
import warnings
from typing import Any

import click

from vitrail.cli.files import read_tools
from vitrail.cli.options import (
    answer_options,
    model_option,
    pdf_options,
    refuse_idle,
    source_options,
    take_pdf_limits,
)
from vitrail.cli.pictures import open_pages, split_words
from vitrail.cli.screen import Printer, waiting
from vitrail.cli.source import Source, embedded, read_model
from vitrail.cli.transcript import load_messages
from vitrail.errors import InputError

EXAMPLES = """\b
Examples:
  vitrail ask sign.png "What does it say?"
  vitrail ask page1.png page2.png "Which total is larger?" --model ./mistral-small-3.1
  curl -s https://example.org/a.jpg | vitrail ask - "What is this?" --model ./pixtral-12b
  vitrail ask sign.png "What does it say?" --json | jq .text

Exit status: 0 answered, 2 something was wrong with the question, a picture or the model
(one line on stderr says what), 130 interrupted.
"""


@click.command("ask", epilog=EXAMPLES)
@click.argument("words", nargs=-1, metavar="PICTURE… QUESTION")
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, token counts, timings.")
@click.option("--system", metavar="TEXT", help="A system prompt.")
@click.option(
    "--conversation", metavar="FILE", help="Ask at the end of a conversation that `vitrail chat` saved."
)
@click.option(
    "--tools", metavar="FILE", help="A JSON list of tools that the model may call; none is run here."
)
@answer_options
@source_options
@pdf_options
def ask(
    words: tuple[str, ...],
    model: str | None,
    as_json: bool,
    tools: str | None,
    conversation: str | None,
    dtype: str | None,
    format_name: str | None,
    revision: str | None,
    **options: Any,
) -> None:
    """Answer QUESTION about each PICTURE, on this machine.

    A PICTURE is a file or a URL; '-' reads one from standard input, and a PDF counts as its pages. The text appears as
    it is made; calls of tools follow it, one on a line. Reasoning goes to standard error.
    """
    names, text = split_words(words)
    refuse_idle(options)
    limits = take_pdf_limits(options)
    given = None if tools is None else read_tools(tools)
    history = [] if conversation is None else load_messages(conversation)
    if options["system"] is not None and any(message.get("role") == "system" for message in history):
        raise InputError(f"{conversation} has a system prompt of its own; leave out --system")
    if not (names or history) and model is None:
        raise InputError(
            'the embedded reader needs a picture; write: vitrail ask PICTURE "What does it say?"'
        )
    with waiting() as line:
        pictures = [page for name in names for page in open_pages(name, limits, line.say)]
    source = Source.open(embedded() if model is None else model, format_name, revision)
    config = read_model(source, with_pictures=bool(pictures))
    source.fetch_weights()
    printer = Printer()
    with waiting() as line:
        line.say("starting")
        from vitrail.cli.answer import Question, answer

        question = Question(
            text=text,
            pictures=pictures,
            source=source,
            config=config,
            tools=given,
            history=history,
            dtype=dtype or ("float32" if model is None else "auto"),
            **options,
        )

        def hear(piece: Any) -> None:
            line.stop()
            if not as_json:
                printer.hear(piece)

        def tell(cost: str) -> None:
            line.stop()
            if not as_json:
                click.echo(f"vitrail: {cost}", err=True)

        try:
            result = answer(question, say=line.say, tell=tell, hear=hear)
        finally:
            printer.close()
    if as_json:
        name = "embedded" if model is None else model
        click.echo(json.dumps(result.as_json(name), ensure_ascii=False))
        return
    response = result.response
    if (
        given is not None or response.tool_calls or response.rest
    ):  # a stray control token in plain text is no news
        for fault in response.faults:
            warnings.warn(f"the answer: {fault}", stacklevel=2)
    for call in response.tool_calls:
        printer.write(f"{call.name}({call.arguments})\n")
    if not (response.text or response.tool_calls):
        click.echo()
