"""`vitrail info MODEL`: its options. What is told is gathered in cli/model_info.py and drawn in cli/info_printer.py."""

import json

import click

from vitrail.cli.options import source_options
from vitrail.cli.screen import waiting
from vitrail.cli.source import Source, embedded

EXAMPLES = """\b
Examples:
  vitrail info ./ministral-3-3b
  vitrail info mistral-community/pixtral-12b --json | jq .memory.nf4.weights
  vitrail info
"""


@click.command("info", epilog=EXAMPLES)
@click.argument("model", metavar="[MODEL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; sizes are bytes.")
@source_options
def info(model: str | None, as_json: bool, format_name: str | None, revision: str | None) -> None:
    """Say what MODEL is and what it will cost, without loading its weights.

    MODEL is a checkpoint's folder, or a name on the Hugging Face hub, of which only the small files are fetched;
    without it, the embedded reader. What would keep it from loading is told as an error.
    """
    source = Source.open(embedded() if model is None else model, format_name, revision)
    name = "embedded" if model is None else model
    with waiting() as line:
        line.say(f"looking at {name}")
        from vitrail.cli.model_info import gather

        found = gather(source.folder, name, source.format)
    if as_json:
        click.echo(json.dumps(found.as_json(), ensure_ascii=False))
        return
    from vitrail.cli.info_printer import show

    show(found)
