"""Texts of the synthetic images: words, numbers, prices, times, dates, labels, random strings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitrail.errors import InputError


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


_SYLLABLES = _words(
    "ba be bi bo bra ca ce chi co cra da de di do dra e fa fe fi flo ga ge gi go gra ha he hi ho in ja jo ka ke",
    "ki la le li lo lu ma me mi mo mu na ne ni no o pa pe pi po pra qua ra re ri ro ru sa se shi si so sta ta te",
    "thi ti to tra u va ve vi vo wa we wi xe ya ye yo za ze zo",
)
_ENDINGS = ["", "", "n", "r", "s", "t", "l", "m", "ng", "ck", "st", "ed", "er", "ly", "y", "ing", "x", "ff"]
_LABELS = _words(
    "Total Tel Room Order Platform Gate Invoice No Date Price Tax Sum Seat Table Flight Ref Code Page Box Floor",
    "Street Bus Line Track Item Qty Fax Unit Pin Zip Lot Size Stop Exit Level Section Phone Account Ticket Batch",
)
_MONTHS = _words(
    "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec January March April June July August October"
)
_RANDOM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_SYMBOLS = "@/#&%+-*=!?.:;,()[]{}<>_$£€\"'^~|\\`"
_RARE = "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝßàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿŁłŒœŠšŽžČčŘřĘęĄąŚśŻżŹźĞğİış§°±²³µ¿¡«»©®–—“”‘’…•€£¥"


class Words:
    """Source of words: word lists (one word per line), or made-up words if there are none.

    The first list has the same weight as all others together. `plain` holds each list's words of ASCII letters,
    `accented` the words of all lists with at least one other letter.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self.plain: list[list[str]] = []
        accented: set[str] = set()
        for path in files:
            fit = {w for w in _read_words(path) if 1 < len(w) <= 14 and w.replace("'", "").isalpha()}
            accented |= {word for word in fit if not word.isascii()}
            self.plain.append(sorted(fit - accented))
        self.accented = sorted(accented)

    def draw(self, rng: np.random.Generator, accents: float) -> str:
        """Draw one word: accented with probability `accents`, occasionally made up."""
        if self.accented and rng.random() < accents:
            return self.accented[int(rng.integers(len(self.accented)))]
        if self.plain and rng.random() > 0.08:
            source = 0 if rng.random() < 0.5 else int(rng.integers(len(self.plain)))
            word = self.plain[source][int(rng.integers(len(self.plain[source])))]
            return word if rng.random() < 0.3 else word.removesuffix("'s")
        return _pseudo_word(rng)


def line(rng: np.random.Generator, words: Words, limit: int, accents: float = 0.08) -> str:
    """Draw one non-empty line without blanks at its ends.

    Args:
        rng: source of randomness.
        words: to draw from.
        limit: maximum number of characters.
        accents: probability of an accented word.
    """
    kind = rng.random()
    if kind < 0.58:
        text = _cased(rng, _phrase(rng, words, limit, accents))
    elif kind < 0.82:
        text = _figures(rng)
    elif kind < 0.96:
        text = _random_string(rng, int(rng.integers(2, 13)))
    else:
        text = _phrase(rng, words, max(4, limit - 3), accents) + str(rng.choice(list(".,!?;:")))
    text = " ".join(text[:limit].split())
    return text or str(int(rng.integers(10, 100)))


def _phrase(rng: np.random.Generator, words: Words, limit: int, accents: float) -> str:
    count = int(rng.integers(1, 5))
    chosen = [words.draw(rng, accents)]
    while len(chosen) < count:
        word = words.draw(rng, accents)
        if len(" ".join(chosen)) + 1 + len(word) > limit:
            break
        chosen.append(word)
    if rng.random() < 0.06:
        chosen[-1] = str(rng.integers(1, 1000))
    return " ".join(chosen)


def _cased(rng: np.random.Generator, text: str) -> str:
    kind = rng.random()
    if kind < 0.34:
        return text
    if kind < 0.56:
        return text.upper() if "ß" not in text else text
    if kind < 0.76:
        return text.title() if "'" not in text else text
    if kind < 0.90:
        return text[:1].upper() + text[1:]
    return " ".join(word.title() if rng.random() < 0.5 else word for word in text.split())


def _figures(rng: np.random.Generator) -> str:
    kind = int(rng.integers(0, 9))
    number = str(rng.integers(0, 10 ** int(rng.integers(1, 7))))
    cents = f"{rng.integers(0, 100):02d}"
    if kind == 0:
        return number
    if kind == 1:
        return str(rng.choice(list("£$€"))) + number[:4] + "." + cents
    if kind == 2:
        return number[:4] + str(rng.choice([".", ","])) + cents + str(rng.choice(["", "", " €", "€", "%"]))
    if kind == 3:
        return f"{rng.integers(0, 24):02d}:{rng.integers(0, 60):02d}" + str(
            rng.choice(["", "", "", ":07", " pm", " AM"])
        )
    if kind == 4:
        return _date(rng)
    if kind in (5, 6, 7):
        mark = str(rng.choice([" ", ": ", "# ", ". ", ":"]))
        label = str(rng.choice(_LABELS))
        value = number if rng.random() < 0.7 else str(rng.choice(list("£$€"))) + number[:4] + "." + cents
        return (label.upper() if rng.random() < 0.2 else label) + mark + value
    return f"+{rng.integers(1, 99)} {rng.integers(10, 999)} {rng.integers(1000, 99999)}"


def _date(rng: np.random.Generator) -> str:
    day, month, year = int(rng.integers(1, 32)), int(rng.integers(1, 13)), int(rng.integers(1950, 2040))
    kind = int(rng.integers(0, 5))
    if kind == 0:
        return f"{day:02d}/{month:02d}/{year}"
    if kind == 1:
        return f"{day:02d}.{month:02d}.{year}"
    if kind == 2:
        return f"{year}-{month:02d}-{day:02d}"
    if kind == 3:
        return f"{day} {rng.choice(_MONTHS)} {year}"
    return f"{rng.choice(_MONTHS)} {day}, {year}"


def _random_string(rng: np.random.Generator, length: int) -> str:
    symbols = 0.08 if rng.random() < 0.6 else 0.3
    rare = 0.25 if rng.random() < 0.12 else 0.0
    letters = []
    for _ in range(length):
        u = rng.random()
        pool = _RARE if u < rare else _SYMBOLS if u < rare + symbols else _RANDOM
        letters.append(pool[int(rng.integers(len(pool)))])
    return "".join(letters)


def _pseudo_word(rng: np.random.Generator) -> str:
    parts = [_SYLLABLES[int(i)] for i in rng.integers(0, len(_SYLLABLES), int(rng.integers(1, 5)))]
    return "".join(parts) + _ENDINGS[int(rng.integers(len(_ENDINGS)))]


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} is not a readable UTF-8 word list: {problem}") from problem
