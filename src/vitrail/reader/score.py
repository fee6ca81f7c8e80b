"""Edit distances between labels and texts read, summed over all images and per group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Label:
    """Label of an image; `groups` maps group names to values shared with other images ("font" → "Lato Bold")."""

    file: str
    text: str
    groups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Graded:
    """One image: its label, the text read, and the edit distance between them."""

    label: Label
    read: str
    edits: int


@dataclass(frozen=True, slots=True)
class Score:
    """Result over several images. `error_rate` is edits per character of the labels."""

    readings: tuple[Graded, ...]

    @property
    def images(self) -> int:
        return len(self.readings)

    @property
    def characters(self) -> int:
        return sum(len(graded.label.text) for graded in self.readings)

    @property
    def edits(self) -> int:
        return sum(graded.edits for graded in self.readings)

    @property
    def exact(self) -> int:
        """Number of images without any error."""
        return sum(graded.edits == 0 for graded in self.readings)

    @property
    def error_rate(self) -> float:
        return self.edits / max(1, self.characters)

    def by(self, group: str) -> dict[str, Score]:
        """Return scores by value of `group`, worst first; an image may have several values."""
        parts: dict[str, list[Graded]] = {}
        for graded in self.readings:
            for name in {value for key, value in graded.label.groups if key == group}:
                parts.setdefault(name, []).append(graded)
        scores = {name: Score(tuple(part)) for name, part in parts.items()}
        return dict(sorted(scores.items(), key=lambda item: (-item[1].error_rate, item[0])))

    def worst(self, count: int) -> tuple[Graded, ...]:
        """Return the images with the most edits."""
        wrong = [graded for graded in self.readings if graded.edits]
        return tuple(sorted(wrong, key=lambda graded: (-graded.edits, graded.label.file))[:count])


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance of two texts."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (a != b))
    return row[-1]


def score(labels: Sequence[Label], read: Iterable[str]) -> Score:
    """Score texts read, given in the labels' order."""
    return Score(
        tuple(
            Graded(label, text, edit_distance(label.text, text))
            for label, text in zip(labels, read, strict=True)
        )
    )
