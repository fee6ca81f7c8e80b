"""Target answers of the embedded model: text with a position token before each line and character, or a fixed reply.

A word is preceded by the position of its line (<y…>), a character by its own (<x…>). Position tokens are control tokens:
decoding with skip_special_tokens drops them. They let the decoder resume from its last position; without them it has to
count characters, and loses its place in long lines and where letters repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.reader import charset

ASKED = (
    "What does it say?",
    "What does this say?",
    "What is written here?",
    "Read the text.",
    "What is the text?",
    "What does the sign say?",
    "What does the picture say?",
    "What does the image say?",
    "What is written in the picture?",
    "What text is in the image?",
    "Which text do you see?",
    "Please read this.",
    "Read this.",
    "Read it aloud.",
    "What do you read?",
    "Can you read this?",
    "Transcribe the text.",
    "Transcribe this image.",
    "Extract the text.",
    "Extract all text from this picture.",
    "Write down the text.",
    "OCR",
    "Text?",
    "What is in the picture?",
    "Describe the image.",
    "",
)
_USUAL = (
    0.3,
    0.04,
    0.04,
    0.04,
    0.04,
)  # probabilities of the first entries; the empty question is cheap and has 0.3
_OTHER = (
    "Who are you?",
    "What are you?",
    "What can you do?",
    "Hello",
    "Hi!",
    "Help",
    "How are you?",
    "Thank you",
    "Tell me a joke.",
    "What is your name?",
    "Who made you?",
    "What time is it?",
    "What is two plus two?",
    "What is 3 + 4?",
    "How many people are there?",
    "What colour is the car?",
    "Which animal is this?",
    "Is this a cat or a dog?",
    "Is the answer right?",
    "Translate this into French.",
    "Summarise the document.",
    "Where was this photo taken?",
    "Who is the president?",
    "What is the capital of France?",
    "Write a poem about the sea.",
    "Why is the sky blue?",
    "How much does it cost?",
    "What happens next?",
    "Explain this to me.",
    "Count the letters.",
)
ABOUT = "I am Vitrail's small reader. I read short printed text in pictures. Ask: What does it say?"
"""The answer to every question that is not about the text."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Token ids of one answer, the final </s> included; all arrays have length n.

    Attributes:
        written: ids fed back to the decoder: positions with noise, characters with occasional errors.
        first, second: target ids; a position between two tokens has both, the second with weight `share`.
        about: index in the text of the character that an id belongs to, or −1.
    """

    written: NDArray[np.int64]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    share: NDArray[np.float32]
    about: NDArray[np.int64]


def plain(text: str) -> Answer:
    """Return an answer without position tokens."""
    ids = np.array([*charset.encode(text), charset.EOS], dtype=np.int64)
    return Answer(ids, ids, ids, np.zeros(len(ids), np.float32), np.full(len(ids), -1))


def placed(
    text: str,
    centres: NDArray[np.float64],
    rng: np.random.Generator,
    *,
    off: float = 0.2,
    wrong: float = 0.02,
) -> Answer:
    """Return the answer to a question about the text.

    Args:
        centres: (characters, 2) centres in pixels; rows of newlines are ignored.
        off: deviation of the written positions, as a fraction of the distance to the nearer neighbour.
        wrong: probability that a written character is wrong.
    """
    rows: list[tuple[int, float, int]] = []  # id (or first id of its range), position, character
    for index, character in enumerate(text):
        if character != "\n":
            if index == 0 or text[index - 1] in " \n":
                rows.append((charset.first_place() + charset.COLUMNS, centres[index, 1] / charset.ROW, index))
            rows.append((charset.first_place(), centres[index, 0] / charset.COLUMN, index))
        rows.append((charset.encode(character)[0], -1.0, -1 if character == "\n" else index))
    rows.append((charset.EOS, -1.0, -1))
    base = np.array([row[0] for row in rows], dtype=np.int64)
    place = np.array([row[1] for row in rows])
    about = np.array([row[2] for row in rows], dtype=np.int64)
    is_place = base >= charset.first_place()
    across = base == charset.first_place()
    last = np.where(across, charset.COLUMNS, charset.ROWS) - 1
    low, share = _between(place, last)
    spacing = np.where(across, _spacing(centres[:, 0])[np.maximum(about, 0)] / charset.COLUMN, 1.2)
    moved = place + np.clip(rng.normal(0, off, len(rows)), -2 * off, 2 * off) * spacing
    seen = np.clip(np.floor(moved), 0, last).astype(np.int64)
    slips = (rng.random(len(rows)) < wrong) & ~is_place & (about >= 0)
    letters = rng.integers(len(charset.SPECIALS) + 1, len(charset.SPECIALS) + 95, len(rows))
    written = np.where(is_place, base + seen, np.where(slips, letters, base))
    return Answer(
        written,
        np.where(is_place, base + low, base),
        np.where(is_place, base + np.minimum(low + 1, last), base),
        np.where(is_place, share, 0).astype(np.float32),
        about,
    )


def question(rng: np.random.Generator, other: float) -> tuple[str, bool]:
    """Draw a question; return it and whether it is about the text. `other` is the probability of a different topic."""
    if rng.random() < other:
        return str(rng.choice(_OTHER)), False
    u = rng.random()
    if u < 0.3:
        return "", True
    for index, chance in enumerate(_USUAL):
        u -= chance if index else chance + 0.3
        if u < 0:
            return ASKED[index], True
    return str(rng.choice(ASKED)), True


def _between(
    place: NDArray[np.float64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the lower of the two positions around a point, and the weight of the upper one."""
    shifted = np.clip(place - 0.5, 0, last)
    low = np.floor(shifted)
    return low.astype(np.int64), (shifted - low).astype(np.float32)


def _spacing(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance in pixels of each character from its nearer neighbour in the line."""
    gaps = np.abs(np.diff(x, prepend=np.nan, append=np.nan))
    nearer: NDArray[np.float64] = np.nan_to_num(np.fmin(gaps[:-1], gaps[1:]), nan=8.0)
    return nearer
