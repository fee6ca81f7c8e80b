"""Batches of synthetic images, drawn on the fly as a pure function of (seed, step), with labels for every patch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vitrail.reader import answers, charset, fonts, render_text, text
from vitrail.reader.answers import Answer
from vitrail.reader.fonts import Face
from vitrail.reader.render_text import Block, Drawing

PATCH = 8
UNIT = 16  # patch side × merge side: the processor rounds sizes up to multiples of this
LONGEST_EDGE = 512
OFFSETS = (-2, -1, 0, 1)
"""Offsets in reading order, relative to the character under a patch, of the characters that the training heads predict."""

_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32) * 255
_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32) * 255


@dataclass(frozen=True, slots=True)
class Look:
    """Difficulty of the images; the recipe widens it stage by stage."""

    sizes: tuple[int, int] = (18, 44)  # font sizes in pixels
    characters: tuple[int, int] = (3, 30)  # range from which the maximum length of a line is drawn
    lines: tuple[float, ...] = (0.6, 0.33, 0.07)  # probabilities of one, two, three lines
    wear: float = 1.0
    accents: float = 0.08
    margin: float = 14.0  # mean margin around the text in pixels
    plain: float = 0.5  # probability of an upright face of regular weight
    patches: float = (
        450.0  # images with n times as many patches are drawn n² times less often: attention is quadratic
    )
    blank: float = 0.0  # probability of an image without text
    other: float = 0.02  # probability of a question that is not about the text


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of N images; images of one size are adjacent."""

    pixel_values: Tensor  # float32 (N, 3, H, W), zero-padded at right and bottom
    image_sizes: Tensor  # int64 (N, 2) height, width
    characters: (
        Tensor  # int64 (patches of all images, len(OFFSETS)); PAD where nothing is written, −100 to ignore
    )
    places: Tensor  # int64 (patches of all images,), index in the image's text of the character there, or −1
    texts: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[Answer, ...]
    shown: tuple[bool, ...]  # False: the question is asked without the image


class Images(Dataset[Batch]):
    """Dataset of batches: `images[step]` depends only on (seed, step, look, count)."""

    def __init__(
        self,
        families: dict[str, list[Face]],
        words: text.Words,
        look: Look,
        *,
        count: int,
        seed: int,
        group: int = 12,
    ) -> None:
        self.families = sorted(families.items())
        self.words, self.look, self.count, self.seed, self.group = words, look, count, seed, group

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng([self.seed, step])
        blocks = [self.block(rng) for _ in range(self.count)]
        sized = []
        for block in blocks:
            # A quarter of the images has no margin.
            margins = (
                [0, 0] if rng.random() < 0.25 else [int(m) for m in rng.exponential(self.look.margin, 2)]
            )
            sized.append(
                (block, block.width + 2 + 2 * min(margins[0], 50), block.height + 2 + 2 * min(margins[1], 40))
            )
        sized.sort(key=lambda item: (_units(item[1], item[2])[1], _units(item[1], item[2])[0]))
        drawings = []
        for start in range(0, self.count, self.group):
            drawings += _draw_group(sized[start : start + self.group], rng, self.look)
        return collate(drawings, rng, self.look.other)

    def block(self, rng: np.random.Generator) -> Block:
        """Lay out one text with font, size, lines and alignment drawn from `rng`."""
        look = self.look
        while True:
            faces = self.families[int(rng.integers(len(self.families)))][1]
            plain = [face for face in faces if fonts.is_plain(face)]
            choice = plain if plain and rng.random() < look.plain else faces
            face = choice[int(rng.integers(len(choice)))]
            limit = int(rng.integers(look.characters[0], look.characters[1] + 1))
            chances = np.array(look.lines)
            count = 1 + int(rng.choice(len(chances), p=chances / chances.sum()))
            lines = [text.line(rng, self.words, limit, look.accents) for _ in range(count)]
            if not all(fonts.covers(face.path, character) for line in lines for character in set(line)):
                continue
            size = int(rng.integers(look.sizes[0], look.sizes[1] + 1))
            align = float(rng.choice([0.0, 0.5, 1.0], p=[0.75, 0.2, 0.05]))
            block = render_text.lay_out(lines, face, size, float(rng.uniform(0.95, 1.4)), align)
            width, height = _units(block.width, block.height)
            if rng.random() < (look.patches * PATCH**2 / (width * height)) ** 2:
                return block


def collate(drawings: Sequence[Drawing], rng: np.random.Generator, other: float = 0.0) -> Batch:
    """Pad images to one tensor, normalise them as the image processor does, and label every patch.

    Questions and errors in written answers are drawn from `rng`; `other` is the probability of a question that is not about
    the text.
    """
    sizes = [drawing.pixels.shape[:2] for drawing in drawings]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    pixels = np.zeros((len(drawings), 3, height, width), dtype=np.float32)
    labels, places = [], []
    asked: list[str] = []
    given: list[Answer] = []
    shown: list[bool] = []
    for index, drawing in enumerate(drawings):
        h, w = sizes[index]
        pixels[index, :, :h, :w] = ((drawing.pixels - _MEAN) / _STD).transpose(2, 0, 1)
        labels.append(patch_characters(drawing))
        places.append(patch_places(drawing))
        question, for_text = answers.question(rng, other)
        asked.append(question)
        shown.append(for_text or rng.random() < 0.5)
        written = drawing.block.text
        blank = not written
        given.append(
            answers.plain("" if for_text else answers.ABOUT)
            if blank or not for_text
            else answers.placed(written, drawing.centres(), rng)
        )
    return Batch(
        torch.from_numpy(pixels),
        torch.tensor(sizes),
        torch.from_numpy(np.concatenate(labels)),
        torch.from_numpy(np.concatenate(places)),
        tuple(drawing.block.text for drawing in drawings),
        tuple(asked),
        tuple(given),
        tuple(shown),
    )


def patch_characters(drawing: Drawing) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return ids (rows · cols, len(OFFSETS)) of the character at each patch's centre and of its neighbours in reading order.

    Without a character: PAD for the character itself, −100 (ignored) for the neighbours. <s> precedes the first character,
    </s> follows the last.
    """
    index = patch_places(drawing)
    before = [charset.BOS] * 2
    ids = np.array([*before, *charset.encode(drawing.block.text), charset.EOS, charset.EOS], dtype=np.int64)
    labels = np.stack([ids[np.maximum(index, 0) + len(before) + offset] for offset in OFFSETS], axis=1)
    labels[index < 0] = -100
    labels[index < 0, OFFSETS.index(0)] = charset.PAD
    return labels


def patch_places(drawing: Drawing) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the index (rows · cols,) in the text of the character at each patch's centre, or −1."""
    height, width = drawing.pixels.shape[:2]
    y, x = np.meshgrid(np.arange(PATCH / 2, height, PATCH), np.arange(PATCH / 2, width, PATCH), indexing="ij")
    return drawing.character_at(x.ravel(), y.ravel())


def _units(width: int, height: int) -> tuple[int, int]:
    """Return the size after preprocessing: shrunk to the longest edge, rounded up to whole units."""
    scale = max(width / LONGEST_EDGE, height / LONGEST_EDGE, 1.0)
    return -(-int(width / scale) // UNIT) * UNIT, -(-int(height / scale) // UNIT) * UNIT


def _draw_group(
    group: Sequence[tuple[Block, int, int]], rng: np.random.Generator, look: Look
) -> list[Drawing]:
    """Draw images that preprocessing brings to one common size, the largest that any of them needs."""
    units = [_units(width, height) for _, width, height in group]
    target = max(w for w, _ in units), max(h for _, h in units)
    drawings = []
    for block, width, height in group:
        scale = max(width / LONGEST_EDGE, height / LONGEST_EDGE, 1.0)
        canvas = (_natural(width, target[0], scale, rng), _natural(height, target[1], scale, rng))
        blank = look.blank > 0 and rng.random() < look.blank
        drawings.append(render_text.render(block, canvas, target, rng, look.wear, blank))
    return drawings


def _natural(needed: int, target: int, scale: float, rng: np.random.Generator) -> int:
    """Return a length of at least `needed` pixels that becomes `target` after scaling by `scale` and rounding up."""
    low = max(int(np.ceil(needed / scale)), target - UNIT + 1)
    return max(needed, int(rng.integers(low, max(low, target) + 1) * scale))
