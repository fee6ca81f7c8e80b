"""`vitrail info`: options. Models: describe.py and info_printer.py; this machine: info_system.py."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from vitrail.cli.bench import GEOMETRIES
from vitrail.cli.options import Named, complete_files, source_options
from vitrail.cli.output import echo_json
from vitrail.cli.screen import waiting
from vitrail.cli.source import Source, embedded
from vitrail.errors import InputError

if TYPE_CHECKING:
    from vitrail.describe import ModelInfo

EXAMPLES = """\b
Examples:
  vitrail info ./ministral-3-3b
  vitrail info pixtral-12b
  vitrail info mistral-community/pixtral-12b --json | jq .memory.nf4.weights
  vitrail info
  vitrail info --system
"""


def _complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    known = [CompletionItem(name) for name in GEOMETRIES if name.startswith(begun)]
    return complete_files(context, parameter, begun) + known


@click.command("info", epilog=EXAMPLES)
@click.argument("model", metavar="[MODEL]", required=False, type=Named(), shell_complete=_complete)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; sizes are bytes.")
@click.option("--system", is_flag=True, help="Instead: this machine, and which kernels run on it.")
@source_options
def info(
    model: str | None, as_json: bool, system: bool, format_name: str | None, revision: str | None
) -> None:
    """Say what MODEL is and what it will cost, without loading its weights.

    MODEL is a checkpoint's folder, or a name on the Hugging Face hub, of which only the small files are fetched; or a
    published geometry such as pixtral-12b or ministral-3-3b, for which nothing is fetched; without it, the embedded
    reader. Anything that would keep it from loading is an error. Speeds are limits of this machine: no model exceeds them.
    """
    if system:
        if (model, format_name, revision) != (None, None, None):
            raise InputError("--system tells of this machine; leave out MODEL, --format and --revision")
        _system(as_json)
        return
    with waiting() as line:
        line.say(f"looking at {model or 'the embedded reader'}")
        found = _describe(model, format_name, revision)
        line.say("measuring this machine")
        from vitrail.bench.limits import Limits

        speed = Limits.measure().speed(found)
    if as_json:
        echo_json({**found.as_json(), "speed": speed})
        return
    from vitrail.cli.info_printer import show

    show(found, speed)


def _describe(model: str | None, format: str | None, revision: str | None) -> "ModelInfo":
    """Describe the checkpoint MODEL, or the published geometry of that name."""
    if model in GEOMETRIES and not Path(model).is_dir():
        if (format, revision) != (None, None):
            raise InputError(f"{model} is a geometry without files; leave out --format and --revision")
        from vitrail.bench.geometries import config_of, params_of
        from vitrail.describe import describe_config

        return describe_config(config_of(params_of(model)), model)
    source = Source.open(embedded() if model is None else model, format, revision)
    from vitrail.describe import describe

    return describe(source.folder, "embedded" if model is None else model, source.format)


def _system(as_json: bool) -> None:
    from vitrail.cli import info_system

    found = info_system.gather()
    if as_json:
        echo_json(asdict(found))
    else:
        info_system.show(found)
