"""Contact sheet for inspecting errors: images, each above its label and the text that was read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from vitrail.images.load import load_image
from vitrail.reader.score import Graded

WIDTH = 1000
_COLUMNS, _PAD, _LETTER = 2, 12, 15


def save_sheet(graded: Sequence[Graded], folder: Path, path: Path) -> None:
    """Draw images of `folder` in two columns into a PNG at `path`, each above its label and the text that was read."""
    font = ImageFont.load_default(_LETTER)
    width = WIDTH // _COLUMNS - 2 * _PAD
    cells = []
    for one in graded:
        image = load_image(folder / one.label.file)
        image.thumbnail((width, 400))
        cells.append((image, f"{_line(one.label.text)}\n{_line(one.read)}"))
    rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    heights = [max(image.height for image, _ in row) + 2 * _LETTER + 3 * _PAD for row in rows]
    sheet = Image.new("RGB", (WIDTH, max(1, sum(heights))), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, (image, words) in enumerate(row):
            left = column * (WIDTH // _COLUMNS) + _PAD
            sheet.paste(image, (left, top + _PAD))
            pen.multiline_text((left, top + 2 * _PAD + image.height), words, fill="black", font=font)
        top += height
    sheet.save(path)


def _line(text: str) -> str:
    return text.replace("\n", " / ")
