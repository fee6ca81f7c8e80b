"""Create labelled evaluation images in chosen fonts, including the families refused for training.

    python -m vitrail.reader.testset OUT --fonts DIR… [--words FILE…] [--count 200] [--seed 1]

Images are divided about equally among font families.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitrail.errors import InputError
from vitrail.reader import fonts, render_text, text
from vitrail.reader.batches import Images, Look
from vitrail.reader.fonts import Face

LOOK = Look(characters=(3, 32), lines=(0.5, 0.35, 0.15), patches=700.0)
"""One to three lines, 18 to 44 pixels, all degradations."""


def make_testset(
    out: Path, folders: Sequence[Path], word_files: Sequence[Path] = (), *, count: int = 200, seed: int = 1
) -> None:
    """Write `count` images and their labels.json to a new or empty folder.

    Raises:
        InputError: `out` is not empty, or no font was found.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    families = sorted(_families(folders).items())
    words = text.Words(word_files)
    rng = np.random.default_rng(seed)
    labels: list[dict[str, Any]] = []
    for number in range(count):
        family, faces = families[number % len(families)]
        block = Images({family: faces}, words, LOOK, count=1, seed=seed).block(rng)
        canvas = (block.width + int(rng.integers(4, 40)), block.height + int(rng.integers(4, 36)))
        drawing = render_text.render(block, canvas, canvas, rng, wear=1.0)
        name = f"{number:04d}.png"
        Image.fromarray(drawing.pixels).save(out / name)
        face = f"{block.face.family} {block.face.style}"
        worn = list(drawing.wear) or ["clean"]
        labels.append({"file": name, "text": block.text, "family": family, "font": face, "wear": worn})
    (out / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1), encoding="utf-8")


def _families(folders: Sequence[Path]) -> dict[str, list[Face]]:
    families: dict[str, list[Face]] = {}
    for face in fonts.find_faces(folders, reserved=True):
        families.setdefault(fonts.kin(face.family), []).append(face)
    return families


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line described at the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m vitrail.reader.testset", description="Labelled images of printed text."
    )
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument(
        "--fonts", type=Path, nargs="+", required=True, help="folders with .ttf and .otf files"
    )
    parser.add_argument("--words", type=Path, nargs="*", default=[], help="word lists, one word a line")
    parser.add_argument("--count", type=int, default=200, help="images (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same images (default 1)")
    given = parser.parse_args(arguments)
    make_testset(given.out, given.fonts, given.words, count=given.count, seed=given.seed)


if __name__ == "__main__":
    main()
