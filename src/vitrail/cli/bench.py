"""`vitrail bench WHAT`: options. Measurements: vitrail.bench."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from vitrail.cli.options import Command, Named, added, complete_files
from vitrail.cli.output import echo, echo_json
from vitrail.cli.screen import waiting

if TYPE_CHECKING:
    from vitrail.bench.report import Report, Setting


GEOMETRIES = (
    "pixtral-12b",
    "pixtral-large",
    "mistral-small-3.1",
    "devstral-small-2",
    "ministral-3-3b",
    "ministral-3-8b",
    "ministral-3-14b",
    "tiny",
)
FORMATS = ("q4", "q8", "nf4", "bf16", "f32")
EXAMPLES = """\b
Examples:
  vitrail bench decode --layers 8
  vitrail bench decode --rows 1,2,4,8,16 --context 2048 --json
  vitrail bench prefill --geometry ministral-3-3b --layers 4 --rows 512
  vitrail bench vision --format bf16 --side 512 --images 1,4
  vitrail bench load --geometry ministral-3-3b --layers 4
  vitrail bench e2e --geometry ministral-3-3b --layers 4
"""


def _examples(command: str) -> str:
    """Return the examples of one command."""
    return "\\b\nExamples:\n" + "\n".join(line for line in EXAMPLES.splitlines() if f" {command} " in line)


class Counts(click.ParamType):  # type: ignore[type-arg]
    """Positive whole numbers, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is not a list of whole numbers such as 1,2,4.", param, ctx)
        return tuple(int(word) for word in words)


def _shared(format: str, part: str = "Decoder") -> Callable[[Command], Command]:
    """Return a decorator that adds the options of every benchmark."""

    def add(command: Command) -> Command:
        return added(
            command,
            click.option(
                "--geometry",
                type=click.Choice(GEOMETRIES),
                default="pixtral-12b",
                show_default=True,
                help="Whose sizes; tiny is no model and tries the command in a second.",
            ),
            click.option(
                "--layers",
                type=click.IntRange(min=1),
                metavar="N",
                help=f"{part} layers. [default: the geometry's own]",
            ),
            click.option(
                "--format",
                "format_name",
                type=click.Choice(FORMATS),
                default=format,
                show_default=True,
                help="How the weights are stored.",
            ),
            click.option("--threads", type=click.IntRange(min=1), metavar="N", help="[default: all cores]"),
            click.option(
                "--repeat",
                type=click.IntRange(min=1),
                default=5,
                show_default=True,
                metavar="N",
                help="Turns of the work and its limit; medians are told.",
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object; bytes and seconds."),
        )

    return add


@click.group("bench", epilog=EXAMPLES, invoke_without_command=True)
@click.pass_context
def bench(context: click.Context) -> None:
    """Measure this machine with a model of real size and random weights.

    Beside every figure stands its limit, measured between the turns of the same run: how fast memory is read, or how
    fast PyTorch multiplies plain matrices of the same shapes.
    """
    if context.invoked_subcommand is None:
        echo(context.get_help())


@bench.command("decode", epilog=_examples("decode"))
@_shared("q4")
@click.option(
    "--rows", type=Counts(), default="1", show_default=True, help="Sequences at once, e.g. 1,2,4,8."
)
@click.option(
    "--context", type=click.IntRange(min=0), default=512, show_default=True, help="Positions cached before."
)
def decode(rows: tuple[int, ...], context: int, **options: Any) -> None:
    """The next token of one sequence, or of several at once."""

    def work(setting: "Setting") -> "Report":
        from vitrail.bench.decode import bench_decode

        return bench_decode(setting, rows)

    _run(work, options, context=context)


@bench.command("prefill", epilog=_examples("prefill"))
@_shared("q4")
@click.option(
    "--rows", type=Counts(), default="512", show_default=True, help="Positions of the prompt, e.g. 512,2048."
)
def prefill(rows: tuple[int, ...], **options: Any) -> None:
    """Reading a prompt."""

    def work(setting: "Setting") -> "Report":
        from vitrail.bench.prefill import bench_prefill

        return bench_prefill(setting, rows)

    _run(work, options)


@bench.command("vision", epilog=_examples("vision"))
@_shared("bf16", "Tower")
@click.option(
    "--side", type=click.IntRange(min=1), default=1024, show_default=True, help="Pixels of an image's side."
)
@click.option(
    "--images",
    "--pictures",  # its old name
    "images",
    type=Counts(),
    default="1",
    show_default=True,
    help="Images in one call, e.g. 1,4.",
)
def vision(side: int, images: tuple[int, ...], **options: Any) -> None:
    """Images through the vision tower and the projector."""

    def work(setting: "Setting") -> "Report":
        from vitrail.bench.vision import bench_vision

        return bench_vision(setting, images)

    _run(work, options, "vision_encoder", side=side)


@bench.command("load", epilog=_examples("load"))
@_shared("q4")
@click.option(
    "--folder",
    metavar="FOLDER",
    type=Named(),
    shell_complete=complete_files,
    help="Where the checkpoint is written for a while. [default: the system's]",
)
def load(folder: str | None, **options: Any) -> None:
    """From a checkpoint on disk to the first token, in processes of their own.

    The checkpoint is written first, with random weights, and removed at the end: it takes its size on disk.
    """

    def work(setting: "Setting") -> "Report":
        from vitrail.bench.load import bench_load

        return bench_load(setting, folder)

    _run(work, options)


@bench.command("e2e", epilog=_examples("e2e"))
@_shared("q4")
@click.option(
    "--side", type=click.IntRange(min=1), default=512, show_default=True, help="Pixels of the image's side."
)
def e2e(side: int, **options: Any) -> None:
    """An image and a short question, stage by stage to the first token and eight more."""

    def work(setting: "Setting") -> "Report":
        from vitrail.bench.e2e import bench_e2e

        return bench_e2e(setting)

    _run(work, options, side=side)


def _run(work: "Callable[[Setting], Report]", options: dict[str, Any], part: str = "", **more: int) -> None:
    """Measure and print. part: the key of params.json with the measured layers; "": the decoder's."""
    with waiting() as line:
        line.say("starting")
        import torch

        from vitrail.bench.geometries import params_of
        from vitrail.bench.report import Setting

        torch.set_num_threads(options["threads"] or os.cpu_count() or 1)
        layers = options["layers"]
        if layers is None:
            params = params_of(options["geometry"])
            layers = params[part]["num_hidden_layers"] if part else params["n_layers"]
        geometry, format = options["geometry"], options["format_name"]
        report = work(
            Setting(
                geometry,
                format,
                layers,
                repeat=options["repeat"],
                progress=lambda text: line.say(f"measuring {geometry}, {layers} layers in {format}: {text}"),
                **more,
            )
        )
    if options["as_json"]:
        echo_json(report.as_dict())
        return
    for text in report.lines():
        echo(text)
