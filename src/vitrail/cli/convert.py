"""`vitrail convert MODEL OUT --to hf|mistral`: options and output. Conversion: weights/convert.py."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrail.cli.options import Named, NamedPath, complete_files, revision_option
from vitrail.cli.output import echo, echo_json, one_line
from vitrail.cli.screen import waiting
from vitrail.cli.source import Source

if TYPE_CHECKING:
    from vitrail.configs import PretrainedConfig
    from vitrail.weights.checkpoint import Checkpoint

EXAMPLES = """\b
Examples:
  vitrail convert ./pixtral-12b-2409 ./pixtral-12b-hf --to hf
  vitrail convert ./pixtral-12b-hf ./pixtral-12b-2409 --to mistral
"""


@click.command("convert", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL", type=Named(), shell_complete=complete_files)
@click.argument("out", metavar="OUT", type=NamedPath())
@click.option(
    "--to",
    required=True,
    type=click.Choice(["hf", "mistral"]),
    help="hf: config.json and model*.safetensors; mistral: params.json and consolidated*.safetensors.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: out, format, files, bytes.")
@revision_option
def convert(model: str, out: Path, to: str, as_json: bool, revision: str | None) -> None:
    """Write MODEL, a checkpoint's folder or a name on the hub, into the new folder OUT in the other format.

    The files with weights are converted one by one, so it takes little memory; nothing is rounded. OUT appears when it is
    complete.
    """
    from vitrail.files.formatting import in_words
    from vitrail.files.layout import HF, MISTRAL, NAMES
    from vitrail.weights.convert import convert as write, open_source

    source = Source.open(model, MISTRAL if to == HF else HF, revision)
    source.fetch_weights()
    with waiting() as line:
        line.say(f"reading {model}")
        _check_fits(*open_source(source.folder, to))
        written = write(
            source.folder,
            out,
            to,
            progress=lambda file, done, size: line.say(
                f"{file}: {done * 100 // max(size, 1)} % of {in_words(size)}"
            ),
        )
    if as_json:
        echo_json({"out": str(out), "format": to, "files": list(written.files), "bytes": written.size})
        return
    files = written.files[0] if len(written.files) == 1 else f"{len(written.files)} files"
    echo(f"{one_line(str(out))}: {files}, {in_words(written.size)}, {NAMES[to]}")


def _check_fits(config: "PretrainedConfig", checkpoint: "Checkpoint") -> None:
    """Check every name and shape against the configuration's model before writing."""
    from vitrail.auto import meta_model
    from vitrail.weights.plan import make_plan

    model = meta_model(config)
    make_plan(model, checkpoint, None).refuse_if_amiss(model, checkpoint)
