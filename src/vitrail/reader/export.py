"""Export a training run to a checkpoint as shipped: averaged weights in bfloat16, without the training heads.

python -m vitrail.reader.export RUN/NN-stage FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from vitrail.errors import CheckpointError
from vitrail.model.vlm import Mistral3ForConditionalGeneration
from vitrail.reader.network import Reader
from vitrail.reader.tokenizer import write_assets
from vitrail.train import checkpoint


def trained(stage: Path, averaged: bool = True) -> Reader:
    """Load the model from the newest checkpoint of a stage.

    Raises:
        CheckpointError: the stage has no checkpoint, or one of a different architecture.
    """
    found = checkpoint.checkpoints(stage)
    if not found:
        raise CheckpointError(f"{stage} has no checkpoint; expected a stage's folder of a training run.")
    reader = Reader()
    name = "average.safetensors" if averaged else "model.safetensors"
    checkpoint.load_weights(reader, load_file(found[-1] / name), found[-1])
    return reader


def export(stage: Path, folder: Path, averaged: bool = True) -> Mistral3ForConditionalGeneration:
    """Write a complete checkpoint folder in Hugging Face's layout; return the model written."""
    model = trained(stage, averaged).model.to(torch.bfloat16)
    model.save_pretrained(folder)
    write_assets(folder)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m vitrail.reader.export", description="Write the shipped checkpoint."
    )
    parser.add_argument("stage", type=Path, help="folder of a stage, with checkpoints")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--raw", action="store_true", help="the last weights instead of their average")
    given = parser.parse_args(arguments)
    export(given.stage, given.folder, averaged=not given.raw)


if __name__ == "__main__":
    main()
