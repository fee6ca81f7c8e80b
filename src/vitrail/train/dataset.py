"""A file of conversations as examples by number: checked once, then made again whenever asked for. Makes no batches."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitrail.errors import InputError, VitrailError
from vitrail.train.conversations import Line, find_lines, read_line
from vitrail.train.examples import Example, ExampleMaker


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that cannot be learned from, and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass
class Dataset:
    """The good lines of a file. `positions` and `learned`: ids of each example, and how many of them are learned."""

    path: Path
    maker: ExampleMaker
    lines: list[Line] = field(default_factory=list)
    positions: array[int] = field(default_factory=lambda: array("q"))
    learned: array[int] = field(default_factory=lambda: array("q"))
    pictures: int = 0
    faults: list[Fault] = field(default_factory=list)
    digest: str = ""

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Example:
        return self.maker.make(read_line(self.path, self.lines[index]))

    def part(self, indices: Sequence[int]) -> Dataset:
        """The examples of these numbers, as a data set."""
        return Dataset(
            self.path,
            self.maker,
            [self.lines[i] for i in indices],
            array("q", (self.positions[i] for i in indices)),
            array("q", (self.learned[i] for i in indices)),
            digest=self.digest,
        )


def open_dataset(
    path: str | Path, maker: ExampleMaker, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read every line, open every picture, and note what is wrong with which line in `faults`.

    progress: hears how many of how many lines are done. InputError for a file that cannot be read or has no lines.
    """
    data = Dataset(Path(path), maker)
    found = list(find_lines(data.path))
    if not found:
        raise InputError(f"{path} is empty; expected a conversation as JSON on every line")
    for count, line in enumerate(found, 1):
        try:
            example = maker.make(read_line(data.path, line))
            if not example.learned:
                raise InputError("there is no text to learn: the assistant's messages are empty")
        except VitrailError as error:
            data.faults.append(Fault(line.number, str(error)))
        else:
            data.lines.append(line)
            data.positions.append(len(example.ids))
            data.learned.append(example.learned)
            data.pictures += len(example.pictures)
        if progress is not None:
            progress(count, len(found))
    data.digest = _digest(data.path)
    return data


def refuse_faults(data: Dataset, skip: bool) -> None:
    """Raise InputError where lines cannot be used, unless they are to be skipped and others are left."""
    total = len(data) + len(data.faults)
    if data.faults and not skip:
        raise InputError(
            f"{data.path}: {len(data.faults)} of {total} lines cannot be used ({data.faults[0]}); mend them, or leave them "
            "out with --skip-bad"
        )
    if not len(data):
        raise InputError(f"{data.path}: none of its {total} lines can be used ({data.faults[0]})")


def _digest(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()
