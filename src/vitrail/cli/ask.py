"""`vitrail ask IMAGE… QUESTION`: options and output.

Loading: assistant.load. The answer is the first of a Dialogue, which calls generate() through generate/reuse.py.
"""

import time
import warnings
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from vitrail.cli.files import read_tools
from vitrail.cli.images import open_parts, split_words
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
from vitrail.cli.output import echo, echo_json
from vitrail.cli.record import answer_record
from vitrail.cli.screen import Printer, Waiting, waiting
from vitrail.cli.source import Source, embedded, read_model
from vitrail.cli.transcript import load_messages
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.model.estimate import Estimate
    from vitrail.responses.events import Piece
    from vitrail.responses.reply import PromptSize

EXAMPLES = """\b
Examples:
  vitrail ask sign.png "What does it say?"
  vitrail ask page1.png page2.png "Which total is larger?" --model ./mistral-small-3.1
  curl -s https://example.org/a.jpg | vitrail ask - "What is this?" --model ./pixtral-12b
  vitrail ask sign.png "What does it say?" --json | jq .text

Exit status: 0 answered, 2 something was wrong with the question, an image or the model
(one line on stderr says what), 130 interrupted.
"""


@click.command("ask", epilog=EXAMPLES)
@click.argument("words", nargs=-1, metavar="IMAGE… QUESTION", shell_complete=complete_files)
@model_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: text, token counts, timings.")
@click.option("--system", metavar="TEXT", help="A system prompt.")
@click.option(
    "--conversation",
    metavar="FILE",
    type=Named(),
    shell_complete=complete_files,
    help="Ask at the end of a conversation that `vitrail chat` saved.",
)
@click.option(
    "--tools",
    metavar="FILE",
    type=Named(),
    shell_complete=complete_files,
    help="A JSON list of tools that the model may call; none is run here.",
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
    """Answer QUESTION about each IMAGE, on this machine.

    An IMAGE is a file or a URL; '-' reads one from standard input, and a PDF counts as its pages. The text appears as
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
        raise InputError('the embedded reader needs an image; write: vitrail ask IMAGE "What does it say?"')
    with waiting() as line:
        parts = open_parts(names, limits, line.say)
    source = Source.open(embedded() if model is None else model, format_name, revision)
    config = read_model(source, with_images=bool(parts))
    source.fetch_weights()
    printer = Printer()
    with waiting() as line:
        line.say("starting")
        # First, and from a shallow call: an import near the end of a chunk of Python's frame stack maps and unmaps the
        # next chunk at every call (10,000 times, 50 ms, with Python 3.11).
        import torch  # noqa: F401

        from vitrail.assistant import load

        began = time.perf_counter()
        line.say(f"loading {source.name}")
        assistant = load(
            source.folder,
            config=config,
            format=source.format,
            dtype=dtype or ("float32" if model is None else "auto"),
            device=options.pop("device"),
            adapter=options.pop("adapter"),
        )
        loaded = time.perf_counter()
        shown = _Shown(
            line, None if as_json else printer, len(parts), assistant.model, options["max_new_tokens"]
        )
        with closing(printer):
            dialogue = assistant.chat(
                history,
                system=options.pop("system"),
                max_image_tokens=options.pop("max_image_tokens"),
                **({} if given is None else {"tools": given}),
            )
            asked = time.perf_counter()
            reply = dialogue.ask(
                [*parts, {"type": "text", "text": text}],
                on_prompt=shown.on_prompt,
                on_event=shown.on_event,
                progress=shown.on_progress,
                **take_generation(options),
            )
    if as_json:
        spent = reply.seconds
        seconds = {
            "load": loaded - began,
            "prepare": asked - loaded + spent["prepare"],
            "first_token": spent["first_token"],
            "generate": spent["total"] - spent["prepare"],
            "total": asked - began + spent["total"],
        }
        estimate = None if shown.estimate is None else shown.estimate.as_json()
        name = "embedded" if model is None else model
        record = answer_record(reply, name, more={"estimate": estimate}, seconds=seconds)
        echo_json(record)
        return
    response = reply.response
    if (
        given is not None or response.tool_calls or response.rest
    ):  # a stray control token in plain text is not reported
        for fault in response.faults:
            warnings.warn(f"the answer: {fault}", stacklevel=2)
    for call in response.tool_calls:
        printer.write(f"{call.name}({call.arguments})\n")
    if not (response.text or response.tool_calls):
        echo()


@dataclass
class _Shown:
    """Output while the model answers.

    printer: None with --json; max_new_tokens: None if not given; estimate: None for a quick answer.
    """

    line: Waiting
    printer: Printer | None
    images: int
    model: Any
    max_new_tokens: int | None
    estimate: "Estimate | None" = None
    _reading: str = field(default="", init=False)

    def on_prompt(self, prompt: "PromptSize") -> None:
        from vitrail.generate.options import fit_context
        from vitrail.model.estimate import estimate

        if self.max_new_tokens is not None:  # an explicit limit that does not fit is refused, not cut
            limit = self.model.max_model_len
            fit_context(prompt.tokens, self.max_new_tokens, limit, explicit=True)
        self.estimate = estimate(self.model, prompt.tokens, prompt.image_sizes)
        if self.estimate is not None and self.estimate.noticeable:
            self.line.stop()
            if self.printer is not None:
                echo(f"vitrail: {_cost(prompt)}; {self.estimate.in_words()}", err=True)
        images = f"{self.images} image{'s' if self.images > 1 else ''}, " if self.images else ""
        self._reading = f"reading {images}{prompt.tokens} tokens"
        self.line.say(self._reading)

    def on_progress(self, done: int, total: int) -> None:
        self.line.say(f"{self._reading}: {done * 100 // total} %")

    def on_event(self, piece: "Piece") -> None:
        self.line.stop()
        if self.printer is not None:
            self.printer.hear(piece)


def _cost(prompt: "PromptSize") -> str:
    number = len(prompt.image_tokens)
    if not number:
        return f"{prompt.tokens:,} tokens"
    word = "the image costs" if number == 1 else f"{number} images cost"
    return f"{word} {sum(prompt.image_tokens):,} of {prompt.tokens:,} tokens"
