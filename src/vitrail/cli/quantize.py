"""`vitrail quantize MODEL OUT`: options. Quantisation: weights/quantize.py; output: quantize_printer.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitrail.cli.options import Named, NamedPath, complete_files, revision_option
from vitrail.cli.output import echo, echo_json
from vitrail.cli.screen import waiting
from vitrail.cli.source import Source
from vitrail.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from torch import nn

    from vitrail.quant.config import Quantization

EXAMPLES = """\b
Examples:
  vitrail quantize ./pixtral-12b ./pixtral-12b-q4 --format q4
  vitrail quantize ./pixtral-12b ./pixtral-12b-q8 --format q8 --vision bf16
  vitrail quantize ./pixtral-12b ./pixtral-12b-q4 --format q4 --keep down_proj --keep 'model.*.layers.0'
"""
PART = click.Choice(["q8", "q4", "bf16"])


@click.command("quantize", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL", type=Named(), shell_complete=complete_files)
@click.argument("out", metavar="OUT", type=NamedPath())
@click.option(
    "--format",
    "format_name",
    required=True,
    type=click.Choice(["q4", "q8", "nf4"]),
    help="q4: 4.5 bits a weight; q8: 8.5; nf4: bitsandbytes' file layout, which other libraries read too.",
)
@click.option(
    "--group",
    type=click.Choice(["32", "64", "128"]),
    help="Neighbouring weights that share a scale (q4, q8). [default: 32]",
)
@click.option("--lm-head", type=PART, help="Format of the head. [default: q8; bf16 with nf4]")
@click.option("--embeddings", type=PART, help="Format of the embeddings' table. [default: q8; bf16 with nf4]")
@click.option("--vision", type=PART, help="Format of vision tower and projector. [default: q8; nf4 with nf4]")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN",
    help="Modules that stay in 16 bits, by name or path, with * for any letters; may be given again.",
)
@click.option(
    "--from",
    "read_as",
    type=click.Choice(["hf", "mistral"]),
    help="Which files to read where MODEL has both. [default: hf]",
)
@click.option(
    "--layers", "every", is_flag=True, help="Show the error of every layer, not of the worst five alone."
)
@click.option("--json", "as_json", is_flag=True, help="Print a report in JSON, for programs.")
@revision_option
def quantize(
    model: str,
    out: Path,
    format_name: str,
    group: str | None,
    lm_head: str | None,
    embeddings: str | None,
    vision: str | None,
    keep: Sequence[str],
    read_as: str | None,
    every: bool,
    as_json: bool,
    revision: str | None,
) -> None:
    """Write MODEL, a checkpoint's folder or a name on the hub, quantised into the new folder OUT.

    What gets which format is shown before the work begins. It takes the memory of the largest tensor. OUT appears when
    it is complete; after an interruption the same command goes on where it was.
    """
    parts = {"lm_head": lm_head, "embeddings": embeddings, "vision": vision}
    if format_name == "nf4":
        _refuse_for_nf4(group, parts)
    source = Source.open(model, read_as, revision)
    _refuse_adapter(source)
    source.fetch_weights()
    with waiting() as line:
        line.say(f"reading {model}")
        from vitrail.auto import meta_model
        from vitrail.configs import read_config
        from vitrail.weights.quantize import write
        from vitrail.weights.quantize_plan import prepare

        network = meta_model(read_config(source.folder, source.format))
        config = _config(network, format_name, group, {k: v for k, v in parts.items() if v is not None}, keep)
        work = prepare(network, source.folder, out, config, format=source.format)
    from vitrail.cli.quantize_printer import show_policy, show_report, watching

    if work.source_kinds:
        kinds = ", ".join(work.source_kinds)
        echo(
            f"vitrail: {model} is quantised already ({kinds}): the errors told come on top of its own; better quantise the "
            "original",
            err=True,
        )
    if not as_json:
        show_policy(work)
    with watching() as progress:
        written = write(work, progress=progress)
    if as_json:
        echo_json({**written.as_json(), "model": model}, indent=2)
    else:
        show_report(written, every=every)


def _refuse_for_nf4(group: str | None, parts: dict[str, str | None]) -> None:
    """Raise InputError for options outside bitsandbytes' layout: one group size, no 8-bit tables, a 16-bit head."""
    given = {"--group": group, "--vision": None if parts["vision"] == "bf16" else parts["vision"]}
    given |= {
        f"--{name.replace('_', '-')}": None if parts[name] == "bf16" else parts[name]
        for name in ("lm_head", "embeddings")
    }
    for flag, value in given.items():
        if value is not None:
            raise InputError(
                f"{flag} {value} does not go with nf4: in bitsandbytes' layout groups have 64 weights, head and embeddings "
                "16 bits, and the tower nf4 or bf16; choose q4 or q8, or leave it out"
            )


def _refuse_adapter(source: Source) -> None:
    from vitrail.adapters.files import base_of

    base = base_of(source.folder)
    if base is not None:
        raise UnsupportedError(
            f"{source.name} holds an adapter, not a model; load it with from_pretrained, work it in with "
            f"merge_and_unload(), save that with save_pretrained and quantise the result, or quantise {base} and load the "
            "adapter on top."
        )


def _config(
    network: "nn.Module", format_name: str, group: str | None, parts: dict[str, str], keep: Sequence[str]
) -> "Quantization":
    from vitrail.quant.policy import nf4_config
    from vitrail.quant.quantize_config import QuantizeConfig

    if format_name == "nf4":
        return nf4_config(network, vision=parts.get("vision") != "bf16", keep=keep)
    return QuantizeConfig(format_name, int(group or 32), **parts, keep=keep)
