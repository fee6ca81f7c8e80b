"""Makes recordings of tests/golden/data anew and compares them with what is there; --write puts them in its place.

    python -m tests.golden.make [PART …] [--write]

A part is a file of recipes/, whose first lines say what made the recordings, with which versions, and what cannot be made
again. No recipe is here for:

- gguf/quality.json: errors of ggml's types on quality.safetensors, by gguf 0.19.0 and the ggml of llama-cpp-python 0.3.36.
- ministral3-0, image_processor's `tensor.*` and case.loss: transformers 5.23.0, torch 2.14.1 and torchvision 0.29.1.
- bitsandbytes/pixtral-nf4 and peft/pixtral: transformers 5.23.0, which names the modules as they are there.
- training: written by Vitrail 0.1.0; tests/golden/test_resumed_runs.py holds the runs, and shows that today's code writes
  the same checkpoints.
- What was drawn at random before anything was computed (weights, images, conversations): it is data, kept as it is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.tiny import DATA

PARTS = ("prompts", "bitsandbytes", "peft", "transformers")
TOLERANCE = 1e-5  # of a tensor's greatest value: what other versions and processors may add in another order


def compare(made: Path, recorded: Path) -> tuple[bool, str]:
    """Whether two files say the same, and how nearly."""
    if made.read_bytes() == recorded.read_bytes():
        return True, "the same bytes"
    if made.suffix != ".safetensors":
        return False, "other bytes"
    ours, theirs = load_file(made), load_file(recorded)
    if ours.keys() != theirs.keys():
        return False, f"other tensors: {sorted(ours.keys() ^ theirs.keys())}"
    apart = {name: distance(ours[name], theirs[name]) for name in ours}
    worst = max(apart, key=lambda name: apart[name])
    equal = sum(value == 0 for value in apart.values())
    return apart[
        worst
    ] <= TOLERANCE, f"{equal} of {len(apart)} tensors equal, {worst} within {apart[worst]:.1e}"


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The greatest difference beside the greatest value; infinite between other types and shapes."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return float("inf")
    if torch.equal(ours, theirs) or not ours.numel():
        return 0.0
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def main(words: list[str]) -> int:
    """Make the parts that are named, or all; 0 where every file says the same."""
    good = True
    for part in [word for word in words if word != "--write"] or PARTS:
        recipe = importlib.import_module(f"tests.golden.recipes.{part}")
        here = {name: importlib.metadata.version(name) for name in recipe.LIBRARIES}
        print(f"{part}: recorded with {recipe.LIBRARIES}, made with {here}")
        with tempfile.TemporaryDirectory() as name:
            recipe.make(Path(name))
            for file in sorted(path for path in Path(name).rglob("*") if path.is_file()):
                same, said = compare(file, DATA / file.relative_to(name))
                print(f"  {'same ' if same else 'OTHER'} {file.relative_to(name)}: {said}")
                good &= same
                if "--write" in words:
                    shutil.copyfile(file, DATA / file.relative_to(name))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
