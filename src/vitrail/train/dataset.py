"""Dataset: examples by index from records of conversations, checked once, then built anew on each access."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrail.errors import InputError, VitrailError
from vitrail.images.request import own_image_request
from vitrail.prompts.messages import Message
from vitrail.train.conversations import Talk, read_talk
from vitrail.train.data_files import Records, open_records
from vitrail.train.examples import Example, ExampleMaker


@dataclass(frozen=True, slots=True)
class Fault:
    """A line (or item, or row) that cannot be used, and why."""

    line: int
    reason: str
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.line}: {self.reason}"


@dataclass
class Dataset:
    """The usable records. `positions` and `learned`: number of ids, and of target ids, of each example.

    Attributes:
        rows: indices of the usable records.
        lacking: character without a token → number of occurrences.
    """

    records: Records
    maker: ExampleMaker
    rows: array[int] = field(default_factory=lambda: array("q"))
    positions: array[int] = field(default_factory=lambda: array("q"))
    learned: array[int] = field(default_factory=lambda: array("q"))
    images: int = 0
    faults: list[Fault] = field(default_factory=list)
    lacking: Counter[str] = field(default_factory=Counter)
    digest: str = ""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self._make(self.rows[index])[1]

    def _make(self, row: int) -> tuple[Talk, Example]:
        """A record's conversation, which is a request of its own, and its example."""
        with own_image_request():
            talk = read_talk(self.records[row], self.records.folder)
            return talk, self.maker.make(talk)

    def part(self, indices: Sequence[int]) -> Dataset:
        """Return the examples with these indices as a dataset."""
        return Dataset(
            self.records,
            self.maker,
            array("q", (self.rows[i] for i in indices)),
            array("q", (self.positions[i] for i in indices)),
            array("q", (self.learned[i] for i in indices)),
            digest=self.digest,
        )


def open_dataset(
    source: Any, maker: ExampleMaker, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read every record, open every image, and collect errors in `faults`.

    Args:
        source: see `open_records`.
        maker: builds examples.
        progress: called with (records done, total).

    Raises:
        InputError: the file cannot be read or has no records.
    """
    records = open_records(source)
    data, alphabet = Dataset(records, maker), Alphabet(maker.maker.tokenizer)
    for row in range(len(records)):
        try:
            talk, example = data._make(row)
            if not example.learned:
                raise InputError("there is no text to learn: the assistant's messages are empty")
        except VitrailError as error:
            data.faults.append(Fault(records.number(row), str(error), records.unit))
        else:
            data.rows.append(row)
            data.positions.append(len(example.ids))
            data.learned.append(example.learned)
            data.images += len(example.images)
            data.lacking.update(alphabet.lacking(talk))
        if progress is not None:
            progress(row + 1, len(records))
    data.digest = records.digest()
    return data


def _texts(message: Message) -> Iterator[str]:
    if isinstance(message.content, str):
        yield message.content
    for part in message.content if isinstance(message.content, tuple) else ():
        text = getattr(part, "text", None) or getattr(part, "thinking", None)
        if isinstance(text, str):
            yield text


class Alphabet:
    """Characters without a token in a tokenizer; each is looked up once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._unknown = tokenizer, getattr(tokenizer, "unk_token_id", None)
        self._lacks: dict[str, bool] = {}

    def lacking(self, talk: Talk) -> Iterator[str]:
        """Yield the characters of a conversation's texts that become the unknown token, with repetitions."""
        if self._unknown is None:
            return
        for message in talk.messages:
            for text in _texts(message):
                yield from filter(self._is_lacking, text)

    def _is_lacking(self, character: str) -> bool:
        if character not in self._lacks:
            ids = self._tokenizer.encode(character, add_special_tokens=False)
            self._lacks[character] = self._unknown in ids
        return self._lacks[character]


def refuse_faults(data: Dataset, skip: bool) -> None:
    """Raise InputError if records cannot be used, unless they are to be skipped and others remain."""
    total, name, units = len(data) + len(data.faults), data.records.name, f"{data.records.unit}s"
    if data.faults and not skip:
        raise InputError(
            f"{name}: {len(data.faults)} of {total} {units} cannot be used ({data.faults[0]}); mend them, or leave them out "
            "with --skip-bad"
        )
    if not len(data):
        raise InputError(f"{name}: none of its {total} {units} can be used ({data.faults[0]})")
