"""Render one synthetic image of printed text and record the position of each character."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from vitrail.reader import fonts
from vitrail.reader.fonts import Face

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_MOST = 2 * np.pi / 180  # maximum rotation, radians


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text in pixels of the block: character i lies between `edges[i]` and `edges[i + 1]`."""

    text: str
    edges: NDArray[np.float64]  # (characters + 1,)
    origin: (
        float  # y at which the line is drawn (Pillow's anchor "ls" would be the baseline; here it is "la")
    )
    top: float  # upper and lower end of the ink
    bottom: float


@dataclass(frozen=True, slots=True)
class Block:
    """Laid-out text: lines, their font, and the size (width, height) of the ink."""

    lines: tuple[Line, ...]
    face: Face
    size: int
    width: int
    height: int

    @property
    def text(self) -> str:
        return "\n".join(line.text for line in self.lines)


@dataclass(frozen=True, slots=True)
class Drawing:
    """A rendered image and the transform from its pixels back to the text block."""

    pixels: Pixels  # (H, W, 3)
    block: Block
    offset: tuple[float, float]  # x and y of the block's corner before rotation
    angle: float  # rotation in radians about the centre of the image
    stretch: tuple[float, float]  # image pixels per drawn pixel, x and y
    wear: tuple[
        str, ...
    ] = ()  # what happened to it: turned, blurred, jpeg, noisy, framed, shaded, light on dark

    def character_at(
        self, x: NDArray[np.float64], y: NDArray[np.float64], slack: float = 2.0
    ) -> NDArray[np.int64]:
        """Return the index in `block.text` of the character under each point (x, y) of the image, or −1.

        A point belongs to a line if it is within `slack` pixels of the vertical extent of its ink, and to the character
        between whose edges it lies; blanks between words are characters too.
        """
        u, v = self._to_block(x, y)
        found = np.full(u.shape, -1, dtype=np.int64)
        best = np.full(u.shape, np.inf)
        start = 0
        for line in self.block.lines:
            column = np.searchsorted(line.edges, u, side="right") - 1
            inside = (column >= 0) & (column < len(line.text))
            inside &= (v >= line.top - slack) & (v <= line.bottom + slack)
            away = np.abs(v - (line.top + line.bottom) / 2)
            inside &= away < best
            found[inside] = start + column[inside]
            best[inside] = away[inside]
            start += len(line.text) + 1
        return found

    def centres(self) -> NDArray[np.float64]:
        """Return the centres (n, 2), as (x, y) in the image, of every character of `block.text`; NaN for newlines."""
        points: list[tuple[float, float]] = []
        for line in self.block.lines:
            middle = (line.top + line.bottom) / 2
            points += [(float(u), middle) for u in (line.edges[:-1] + line.edges[1:]) / 2]
            points.append((np.nan, np.nan))
        height, width = self.pixels.shape[:2]
        centre = np.array([width / self.stretch[0] / 2, height / self.stretch[1] / 2])
        away = np.array(points[:-1]) + np.array(self.offset) - centre
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = away @ np.array([[cos, -sin], [sin, cos]])
        return np.asarray((turned + centre) * np.array(self.stretch))

    def _to_block(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        height, width = self.pixels.shape[:2]
        centre_x, centre_y = width / self.stretch[0] / 2, height / self.stretch[1] / 2
        dx, dy = x / self.stretch[0] - centre_x, y / self.stretch[1] - centre_y
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return cos * dx - sin * dy + centre_x - self.offset[0], sin * dx + cos * dy + centre_y - self.offset[
            1
        ]


def lay_out(lines: list[str], face: Face, size: int, spacing: float, align: float) -> Block:
    """Lay out lines of text in a font at a pixel size.

    Args:
        spacing: line distance in multiples of the font's line height.
        align: 0 left, 0.5 centred, 1 right.
    """
    font = fonts.load(face.path, size)
    ascent, descent = font.getmetrics()
    step = (ascent + descent) * spacing
    lengths = [np.array([font.getlength(text[:i]) for i in range(len(text) + 1)]) for text in lines]
    boxes = [font.getbbox(text) for text in lines]
    longest = max(float(edges[-1]) for edges in lengths)
    starts = [align * (longest - float(edges[-1])) for edges in lengths]
    left = min(start + box[0] for start, box in zip(starts, boxes, strict=True))
    right = max(start + box[2] for start, box in zip(starts, boxes, strict=True))
    top = float(boxes[0][1])
    bottom = max(row * step + box[3] for row, box in enumerate(boxes))
    placed = tuple(
        Line(
            text, edges + start - left, row * step - top, row * step + box[1] - top, row * step + box[3] - top
        )
        for row, (text, edges, start, box) in enumerate(zip(lines, lengths, starts, boxes, strict=True))
    )
    return Block(placed, face, size, int(np.ceil(right - left)), int(np.ceil(bottom - top)))


def render(
    block: Block,
    canvas: tuple[int, int],
    target: tuple[int, int],
    rng: np.random.Generator,
    wear: float,
    blank: bool = False,
) -> Drawing:
    """Draw a block on a canvas of (width, height) pixels, then resize to `target` (width, height), as a processor does.

    Args:
        wear: 0 (clean print) to 1: frequency of rotation, blur, noise, frames and JPEG artefacts.
        blank: leave the text out.
    """
    if blank:
        block = replace(block, lines=())
    width, height = canvas
    x, y = _place(width - block.width, rng), _place(height - block.height, rng)
    cover = Image.new("L", canvas, 0)
    pen = ImageDraw.Draw(cover)
    font = fonts.load(block.face.path, block.size)
    for line in block.lines:
        pen.text((x + line.edges[0], y + line.origin), line.text, fill=255, font=font)
    angle = 0.0
    worn: list[str] = []
    if rng.random() < 0.35 * wear:
        # Bounded by the margins: ink must stay in the image.
        limit = (min(y, height - block.height - y) + 1.5) / (block.width / 2)
        angle = float(np.clip(rng.normal(0, 1.0) * np.pi / 180, -min(limit, _MOST), min(limit, _MOST)))
        worn.append("turned")
        cover = cover.rotate(np.degrees(angle), resample=Image.Resampling.BICUBIC)
    if rng.random() < 0.35 * wear:
        worn.append("blurred")
        cover = cover.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    image = Image.fromarray(_paint(np.asarray(cover), rng, wear, worn))
    if rng.random() < 0.35 * wear:
        worn.append("jpeg")
        image = _as_jpeg(image, int(rng.integers(40, 96)))
    if canvas != target:
        image = image.resize(target, Image.Resampling.BICUBIC)
    stretch = (target[0] / width, target[1] / height)
    return Drawing(np.asarray(image), block, (x, y), angle, stretch, tuple(worn))


def _place(slack: int, rng: np.random.Generator) -> float:
    # Mostly near the centre, as on signs; sometimes anywhere.
    if slack <= 0:
        return 0.0
    share = rng.uniform(0, 1) if rng.random() < 0.5 else float(np.clip(rng.normal(0.5, 0.12), 0, 1))
    return float(int(share * slack))


def _paint(cover: Pixels, rng: np.random.Generator, wear: float, worn: list[str]) -> Pixels:
    """Colour the coverage mask: ink, background, optional frame and noise; append what was applied to `worn`."""
    ink, ground = _colours(rng, wear)
    if ink.sum() > ground.sum():
        worn.append("light on dark")
    height, width = cover.shape
    alpha = (cover.astype(np.float32) / 255)[..., None]
    base: Floats = np.broadcast_to(ground, (height, width, 3)).astype(np.float32)
    if rng.random() < 0.15 * wear:
        worn.append("shaded")
        base = base + np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * float(rng.uniform(-20, 20))
    image = base + (ink - base) * alpha
    if rng.random() < 0.12 * wear and min(height, width) > 24:
        worn.append("framed")
        thick = int(rng.integers(1, 3))
        inset = int(rng.integers(0, 3))
        for side in range(inset, inset + thick):
            image[side, inset : width - inset] = ink
            image[height - 1 - side, inset : width - inset] = ink
            image[inset : height - inset, side] = ink
            image[inset : height - inset, width - 1 - side] = ink
    if rng.random() < 0.5 * wear:
        worn.append("noisy")
        channels = 3 if rng.random() < 0.7 else 1
        noise = rng.standard_normal((height, width, channels), dtype=np.float32)
        image = image + noise * float(rng.uniform(1, 14))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _colours(rng: np.random.Generator, wear: float) -> tuple[Floats, Floats]:
    """Draw ink and background colours of readable contrast, dark on light or the reverse; clean print is black on white."""
    if rng.random() >= 1.5 * wear:
        return np.zeros(3, dtype=np.float32), np.full(3, 255, dtype=np.float32)
    while True:
        kind = rng.random()
        if kind < 0.25:
            dark, light = rng.uniform(0, 40) * np.ones(3), rng.uniform(215, 255) * np.ones(3)
        elif kind < 0.85:
            dark, light = rng.uniform(0, 90, 3), rng.uniform(175, 255, 3)
        else:
            dark, light = rng.uniform(0, 200, 3), rng.uniform(60, 255, 3)
        weights = np.array([0.299, 0.587, 0.114])
        if float((light - dark) @ weights) > 80:
            break
    first, second = (dark, light) if rng.random() < 0.65 else (light, dark)
    return first.astype(np.float32), second.astype(np.float32)


def _as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=quality)
        buffer.seek(0)
        return Image.open(buffer).convert("RGB")
