"""`vitrail info`: its options. Models: describe.py and info_printer.py; this machine: info_system.py."""

from dataclasses import asdict

import click

from vitrail.cli.options import source_options
from vitrail.cli.output import echo_json
from vitrail.cli.screen import waiting
from vitrail.cli.source import Source, embedded
from vitrail.errors import InputError

EXAMPLES = """\b
Examples:
  vitrail info ./ministral-3-3b
  vitrail info mistral-community/pixtral-12b --json | jq .memory.nf4.weights
  vitrail info
  vitrail info --system
"""


@click.command("info", epilog=EXAMPLES)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; sizes are bytes.")
@click.option("--system", is_flag=True, help="Instead: this machine, and which kernels run on it.")
@source_options
def info(
    model: str | None, as_json: bool, system: bool, format_name: str | None, revision: str | None
) -> None:
    """Say what MODEL is and what it will cost, without loading its weights.

    MODEL is a checkpoint's folder, or a name on the Hugging Face hub, of which only the small files are fetched;
    without it, the embedded reader. What would keep it from loading is told as an error.
    """
    if system:
        if (model, format_name, revision) != (None, None, None):
            raise InputError("--system tells of this machine; leave out MODEL, --format and --revision")
        _system(as_json)
        return
    source = Source.open(embedded() if model is None else model, format_name, revision)
    name = "embedded" if model is None else model
    with waiting() as line:
        line.say(f"looking at {name}")
        from vitrail.describe import describe

        found = describe(source.folder, name, source.format)
    if as_json:
        echo_json(found.as_json())
        return
    from vitrail.cli.info_printer import show

    show(found)


def _system(as_json: bool) -> None:
    from vitrail.cli import info_system

    found = info_system.gather()
    if as_json:
        echo_json(asdict(found))
    else:
        info_system.show(found)
