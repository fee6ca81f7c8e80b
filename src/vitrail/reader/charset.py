"""Vocabulary of the embedded model: characters, control tokens, position tokens and their ids."""

from __future__ import annotations

SPECIALS: tuple[str, ...] = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
)
"""Control tokens; a token's index is its id, as for Tekken's first twenty (docs/formats.md, "Tokens of an image")."""

UNK, BOS, EOS, INST, END_INST, IMG, PAD, IMG_BREAK, IMG_END = 0, 1, 2, 3, 4, 10, 11, 12, 13

TYPOGRAPHY = "–—‘’‚“”„†‡•…‰‹›€™−№√"
VOCAB_SIZE = 576
"""Size of the embedding; the few ids above the last position token are unused."""

COLUMN, COLUMNS = 4, 128
ROW, ROWS = 8, 64
"""Pixels per position and number of positions: across (before each character) and down (before each word)."""


def alphabet() -> tuple[str, ...]:
    """Return all characters in id order: newline, ASCII, Latin-1, Latin Extended-A, typography."""
    ascii_part = [chr(code) for code in range(0x20, 0x7F)]
    latin1 = [chr(code) for code in range(0xA1, 0x100) if code != 0xAD]  # U+00AD is the invisible soft hyphen
    extended = [chr(code) for code in range(0x100, 0x180)]
    return ("\n", *ascii_part, *latin1, *extended, *TYPOGRAPHY)


def places() -> tuple[str, ...]:
    """Return the position tokens: <x0> … across, then <y0> … down."""
    return (*(f"<x{i}>" for i in range(COLUMNS)), *(f"<y{i}>" for i in range(ROWS)))


def first_place() -> int:
    """Return the id of <x0>, which is the number of control tokens and characters."""
    return len(SPECIALS) + len(alphabet())


def vocabulary() -> dict[str, int]:
    """Return token → id: control tokens first, then one id per character, then the position tokens."""
    tokens = SPECIALS + alphabet() + places()
    return {token: index for index, token in enumerate(tokens)}


def encode(text: str) -> list[int]:
    """Encode plain text, one id per character; a character outside the vocabulary becomes <unk>."""
    table = _character_ids()
    return [table.get(character, UNK) for character in text]


def decode(ids: list[int]) -> str:
    """Decode ids to text; control tokens and unused ids are dropped."""
    letters = alphabet()
    first = len(SPECIALS)
    return "".join(letters[i - first] for i in ids if first <= i < first + len(letters))


def _character_ids() -> dict[str, int]:
    return {character: len(SPECIALS) + index for index, character in enumerate(alphabet())}
