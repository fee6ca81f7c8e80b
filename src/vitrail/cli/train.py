"""`vitrail train DATA`: options, progress bar and output. Training: train/job.py."""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitrail.cli.options import (
    Command,
    Named,
    NamedPath,
    complete_files,
    complete_formats,
    device_option,
    refuse_format,
)
from vitrail.cli.output import echo, echo_json, one_line
from vitrail.cli.screen import waiting
from vitrail.errors import InputError

if TYPE_CHECKING:
    from collections import Counter

    from vitrail.train.job import Job, Reading
    from vitrail.train.trainer import Outcome, Trainer


EXAMPLES = """\b
Examples:
  vitrail train meters.jsonl --check
  vitrail train meters.jsonl --out meters --steps 200
  vitrail train talks.jsonl --out expert --model ./mistral-small-3.1 --quantize nf4 --bf16 --eval-share 0.05
  vitrail train pages.jsonl --out reader --model ./pixtral-12b --part vision_tower --part projector

Exit status: 0 done, 2 something was wrong (stderr says what), 130 interrupted: the same command goes on.
"""
_TELL_EVERY = 15  # seconds between lines if stderr is not a terminal
_SHOWN = 20  # faulty lines that are listed one by one
_LORA = ("rank", "alpha", "dropout", "target", "dora", "rslora")


def _number(flag: str, kind: Any, text: str) -> Callable[[Command], Command]:
    return click.option(flag, type=kind, metavar="N", help=text)


@click.command("train", epilog=EXAMPLES)
@click.argument("data", metavar="DATA", type=NamedPath())
@click.option("-o", "--out", metavar="DIR", type=NamedPath(), help="Folder for the result.")
@click.option(
    "-m",
    "--model",
    metavar="FOLDER",
    type=Named(),
    shell_complete=complete_files,
    help="Checkpoint to begin from. [default: the embedded reader]",
)
@click.option("--check", is_flag=True, help="Check every line and image of DATA, and stop.")
@click.option("--skip-bad", is_flag=True, help="Leave out lines that cannot be used.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the end.")
@click.option(
    "--method",
    type=click.Choice(["lora", "full"]),
    default="lora",
    show_default=True,
    help="Train an adapter, or all weights.",
)
@click.option(
    "--quantize", type=click.Choice(["nf4", "fp4", "int8"]), help="Pack the base under the adapter."
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["language_model", "projector", "vision_tower"]),
    help="What to train. [default: the language model with lora, everything with full]",
)
@click.option(
    "--target",
    multiple=True,
    metavar="NAME",
    help="Layers for the adapter: endings of names, or one pattern. [default: all-linear]",
)
@_number("--rank", click.IntRange(1, 4096), "Rank of the adapter. [default: 16]")
@_number("--alpha", click.FloatRange(0, min_open=True), "Its scale. [default: twice the rank]")
@_number("--dropout", click.FloatRange(0, 1, max_open=True), "Its dropout. [default: 0]")
@click.option("--dora", is_flag=True, help="Train the lengths of rows too (DoRA).")
@click.option("--rslora", is_flag=True, help="Scale by the root of the rank.")
@click.option("--merge", is_flag=True, help="Also write a whole checkpoint, DIR/merged.")
@_number("--epochs", click.FloatRange(0, min_open=True), "Times through DATA. [default: 1]")
@_number("--steps", click.IntRange(1), "Steps, instead of epochs.")
@_number("--batch", click.IntRange(1), "Conversations packed together. [default: 8]")
@_number("--positions", click.IntRange(1), "Positions packed together. [default: 8192]")
@_number("--accumulate", click.IntRange(1), "Packs per step. [default: 1]")
@_number(
    "--lr", click.FloatRange(0, min_open=True), "Learning rate. [default: 2e-4 with lora, 2e-5 with full]"
)
@_number("--warmup", click.IntRange(0), "Steps in which it rises. [default: a twentieth, at most 100]")
@click.option(
    "--schedule", type=click.Choice(["constant", "cosine"]), help="How it falls. [default: constant]"
)
@_number("--decay", click.FloatRange(0, 1), "Share of the steps in which constant falls. [default: 0.2]")
@_number("--final", click.FloatRange(0, 1), "What is left of it in the end. [default: 0]")
@click.option("--optimizer", type=click.Choice(["adamw", "muon"]), help="[default: adamw]")
@_number("--weight-decay", click.FloatRange(0), "[default: 0]")
@_number("--clip", click.FloatRange(0), "Largest norm of the gradient; 0: none. [default: 1]")
@_number("--ema", click.FloatRange(0, 1, max_open=True), "Keep a moving average of the weights. [default: 0]")
@click.option("--bf16", is_flag=True, help="Compute products in bfloat16.")
@click.option("--checkpointing", is_flag=True, help="Compute blocks twice: less memory, more time.")
@click.option("--eval", "evaluation", metavar="FILE", type=NamedPath(), help="Evaluate with this file.")
@_number("--eval-share", click.FloatRange(0, 1, min_open=True, max_open=True), "Or with a share of DATA.")
@_number("--eval-every", click.IntRange(1), "Steps between evaluations. [default: an epoch]")
@_number(
    "--patience", click.IntRange(1), "End after N evaluations that are no better, and keep the best weights."
)
@_number("--save-every", click.IntRange(1), "Steps between checkpoints. [default: 100]")
@_number("--keep", click.IntRange(1), "Checkpoints that stay. [default: 2]")
@_number("--seed", click.IntRange(0), "Of order, fresh adapters and dropout. [default: 0]")
@_number("--max-length", click.IntRange(1), "Positions of the longest conversation. [default: the model's]")
@_number("--max-image-tokens", click.IntRange(2), "Shrink each image until it costs at most N tokens.")
@click.option(
    "--format",
    "format_name",
    metavar="NAME",
    shell_complete=complete_formats,
    help="Prompt format, as for `vitrail prompt`.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of weights that are not trained. [default: float32]",
)
@device_option
def train(data: Path, check: bool, as_json: bool, **options: Any) -> None:
    """Teach a model with the conversations of DATA: JSON Lines, one JSON list, Parquet, or a folder that `datasets` saved.

    Messages are written as for `vitrail ask`, OpenAI, mistral-finetune, LLaVA, ShareGPT or TRL; images lie beside DATA. What
    assistants say is learned. Every line is checked before anything is trained. DIR gets the adapter (or the checkpoint),
    metrics.jsonl, curves.png and what an interrupted run needs to go on.
    """  # fmt: skip
    if not check and options["out"] is None:
        raise InputError("--out is missing: the folder for the result")
    with waiting() as line:
        line.say("starting")
        job = _job(data, options)
        reading = job.read(lambda done, all_: line.say(f"checking {data}: {done} of {all_}"))
    _tell_faults(reading.faults)
    _tell_lacking(reading.data.lacking)
    if check:
        _tell_check(reading, as_json)
        return
    with waiting() as line, closing(_Bar()) as bar:
        line.say(f"loading {options['model'] or 'the embedded reader'}")

        def start(trainer: "Trainer") -> None:
            line.stop()
            if trainer.begun:
                echo(f"vitrail: going on from step {trainer.begun} of {trainer.steps}", err=True)
            bar.start(trainer)

        outcome = job.run(reading, on_start=start, on_step=bar.step)
    _tell_outcome(job, outcome, as_json)


def _job(data: Path, options: dict[str, Any]) -> "Job":
    """Return the job of the options."""
    from vitrail.adapters.config import LoraConfig
    from vitrail.cli.source import embedded
    from vitrail.train.job import Job
    from vitrail.train.settings import SETTINGS, Settings
    from vitrail.train.setup import lora_config

    refuse_format("--format", options["format_name"])
    given = {name: value for name, value in options.items() if value is not None and value != ()}
    if options["method"] == "full" and (idle := [name for name in _LORA if given.get(name)]):
        raise InputError(f"--{idle[0]} shapes an adapter; it does nothing with --method full")
    settings = {name: given[name] for name in SETTINGS if name in given}
    if given["bf16"]:
        settings["precision"] = "bf16"
    lora: LoraConfig = lora_config(
        given.get("rank", 16),
        given.get("alpha"),
        given.get("target", ()),
        lora_dropout=given.get("dropout", 0.0),
        use_dora=given["dora"],
        use_rslora=given["rslora"],
    )
    names = ("out", "method", "quantize", "parts", "evaluation", "eval_share", "skip_bad", "max_image_tokens",
             "dtype", "device", "merge")  # fmt: skip
    return Job(
        data,
        given.get("model") or embedded(),
        settings=Settings(**settings),
        lora=lora,
        longest=given.get("max_length"),
        format=given.get("format_name"),
        **{name: given[name] for name in names if name in given},
    )


def _tell_faults(faults: list[str]) -> None:
    for fault in faults[:_SHOWN]:
        echo(f"vitrail: {one_line(fault)}", err=True)
    if len(faults) > _SHOWN:
        echo(f"vitrail: and {len(faults) - _SHOWN} more", err=True)


def _tell_lacking(lacking: "Counter[str]") -> None:
    if lacking:
        shown = ", ".join(f"{character!r} ({count})" for character, count in lacking.most_common(_SHOWN))
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        echo(
            f"vitrail: warning: {len(lacking)} characters have no token and become the unknown one: "
            f"{one_line(shown)}{more}",
            err=True,
        )


def _tell_check(reading: "Reading", as_json: bool) -> None:
    """Print the result of --check; exit with status 2 for faults."""
    data = reading.data
    found = {
        "conversations": len(data),
        "positions": sum(data.positions),
        "learned": sum(data.learned),
        "longest": max(data.positions, default=0),
        "images": data.images,
        "bad_lines": len(reading.faults),
        "lacking": dict(data.lacking.most_common()),
    }
    if as_json:
        echo_json({**found, "faults": reading.faults})
    else:
        echo(
            f"{found['conversations']} conversations, {found['images']} images, {found['positions']} tokens, "
            f"{found['learned']} of them learned, {found['longest']} in the longest; "
            f"{found['bad_lines']} {data.records.unit}s cannot be used"
        )
    if reading.faults:
        raise click.exceptions.Exit(2)


def _tell_outcome(job: "Job", outcome: "Outcome", as_json: bool) -> None:
    result = {"out": str(job.out), "step": outcome.step, "reason": outcome.reason, "loss": outcome.loss,
              "eval_loss": outcome.eval_loss}  # fmt: skip
    out = one_line(str(job.out))
    kind = "checkpoint" if job.method == "full" else "adapter"
    if as_json:
        echo_json(result)
    elif outcome.reason == "asked to stop":
        echo(
            f"stopped after step {outcome.step}; {out} has the {kind} so far, and the same command goes on",
            err=True,
        )
    else:
        losses = "" if outcome.loss is None else f", loss {outcome.loss:.4f}"
        losses += "" if outcome.eval_loss is None else f", evaluation {outcome.eval_loss:.4f}"
        echo(f"{out}: {kind} after {outcome.step} steps ({outcome.reason}){losses}")
    if outcome.reason == "asked to stop":
        raise click.exceptions.Exit(130)


class _Bar:
    """Progress bar: loss, tokens per second, time left; without a terminal, periodic lines without rich."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._steps, self._told = 0, time.monotonic()

    def start(self, trainer: "Trainer") -> None:
        """Show the bar of a run that starts or resumes."""
        self._steps, self._told = trainer.steps, time.monotonic()
        if not sys.stderr.isatty():
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from vitrail.cli.console import PlainConsole

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=PlainConsole(stderr=True),
        )
        self._task = self._progress.add_task(
            "", total=trainer.steps, completed=trainer.begun, loss="…", speed="…"
        )
        self._progress.start()

    def step(self, record: dict[str, Any]) -> None:
        """Show one step."""
        step, loss, speed = record["step"], f"{record['loss']:.4f}", f"{record['tokens_per_second']:,.0f}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, loss=loss, speed=speed)
        elif time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            echo(f"vitrail: step {step} of {self._steps}, loss {loss}, {speed} tokens/s", err=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
