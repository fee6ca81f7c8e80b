"""Training curves as an image, drawn with Pillow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_SIZE = (960, 640)
_FRAME = (80, 50, 930, 470)  # left, top, right, bottom of the loss plot
_BELOW = (80, 520, 930, 600)  # of the learning-rate plot
_INK, _GRID = (40, 40, 40), (225, 225, 225)
_FAINT, _LOSS, _EVALUATION, _RATE = (190, 205, 230), (31, 90, 180), (200, 80, 30), (60, 140, 80)

Points = Sequence[tuple[float, float]]


def draw_curves(records: Sequence[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Draw loss (raw and smoothed), evaluation loss and learning rate over the steps to a PNG file of 960×640 pixels.

    The file appears only when complete.

    Args:
        records: as in metrics.jsonl.
        path: of the PNG file.
        title: above the curves.
    """
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    losses = _points(records, "loss")
    evaluations = _points(records, "eval_loss")
    rates = _points(records, "rate")
    last = max([step for step, _ in (*losses, *evaluations)], default=1)
    pen.text((80, 16), title, _INK, font=_font(18))
    values = [value for _, value in (*losses, *evaluations)]
    _axes(pen, _FRAME, last, min(values, default=0.0), max(values, default=1.0), "loss")
    bounds = (min(values, default=0.0), max(values, default=1.0))
    _line(pen, _FRAME, losses, last, bounds, _FAINT, 1)
    _line(pen, _FRAME, _smooth(losses), last, bounds, _LOSS, 2)
    _line(pen, _FRAME, evaluations, last, bounds, _EVALUATION, 2, dots=True)
    highest = max((value for _, value in rates), default=1.0)
    _axes(pen, _BELOW, last, 0.0, highest, "rate")
    _line(pen, _BELOW, rates, last, (0.0, highest), _RATE, 2)
    _legend(pen, bool(evaluations))
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with part.open("xb") as stream:  # a link is not followed
        image.save(stream, "PNG")
    os.replace(part, path)


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    found = [(float(record["step"]), float(record[key])) for record in records if key in record]
    return [point for point in found if math.isfinite(point[1])]


def _smooth(points: Points) -> list[tuple[float, float]]:
    """Return a moving average over about a twentieth of the run."""
    share = 1 / max(1.0, len(points) / 20)
    total = weight = 0.0
    smooth = []
    for step, value in points:
        total, weight = total * (1 - share) + value * share, weight * (1 - share) + share
        smooth.append((step, total / weight))
    return smooth


def _axes(
    pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], last: float, low: float, high: float, name: str
) -> None:
    left, top, right, bottom = box
    for part in range(5):
        y = bottom - (bottom - top) * part // 4
        pen.line([(left, y), (right, y)], _GRID)
        if bottom - top > 200 or part in (0, 4):
            pen.text((left - 8, y), f"{low + (high - low) * part / 4:.3g}", _INK, font=_font(12), anchor="rm")
        x = left + (right - left) * part // 4
        pen.text((x, bottom + 14), f"{last * part / 4:.0f}", _INK, font=_font(12), anchor="mm")
    pen.rectangle(box, outline=_INK)
    pen.text((left + 6, top + 4), name, _INK, font=_font(12))


def _line(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    points: Points,
    last: float,
    bounds: tuple[float, float],
    colour: tuple[int, int, int],
    width: int,
    *,
    dots: bool = False,
) -> None:
    left, top, right, bottom = box
    low, span = bounds[0], (bounds[1] - bounds[0]) or 1.0
    places = [
        (left + (right - left) * step / (last or 1), bottom - (bottom - top) * (value - low) / span)
        for step, value in points
    ]
    if len(places) > 1:
        pen.line(places, colour, width)
    for x, y in places if dots or len(places) == 1 else ():
        pen.ellipse([x - 3, y - 3, x + 3, y + 3], colour)


def _legend(pen: ImageDraw.ImageDraw, evaluated: bool) -> None:
    entries = [("each step", _FAINT), ("smoothed", _LOSS)] + (
        [("evaluation", _EVALUATION)] if evaluated else []
    )
    for number, (name, colour) in enumerate(entries):
        x = 620 + 110 * number
        pen.line([(x, 26), (x + 18, 26)], colour, 3)
        pen.text((x + 24, 26), name, _INK, font=_font(12), anchor="lm")


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
