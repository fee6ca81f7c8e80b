"""Fonts for training: find usable faces in folders and refuse the families reserved for evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from vitrail.errors import InputError

RESERVED: tuple[str, ...] = (
    "Lato",
    "Carlito",
    "Roboto",
    "Liberation",
    "Linux Libertine",
    "Linux Biolinum",
    "Libertinus",
    "Inconsolata",
    "Cabin",
    "Comfortaa",
    "Junicode",
    "Old Standard",
    "Quattrocento",
    "Courier Prime",
    # The outlines of Liberation 2 under other names.
    "Arimo",
    "Tinos",
    "Cousine",
)
"""Families reserved for evaluation: never used in training or for choosing a model."""

HELD_OUT: tuple[str, ...] = ("Oxygen", "Vollkorn", "PT Sans", "B612")
"""Families held out of training for the recipe's own validation."""

# Alternative names in files of a reserved family.
_ALIASES = ("linlibertine", "linbiolinum")
# Families of other scripts, symbol fonts, and display faces unlike ordinary print.
_UNSUITABLE = re.compile(
    r"symbol|emoji|dingbat|math|ornament|braille|icons?\b|standard symbols|chancery|zapfino|"
    r"small ?caps|\bcaps\b|keyboard|initials|chorus|script|monoisome|unslanted|quotation|infofontz|signfontz|pcfontz|"
    r"D050000L|Z003|domestic manners|abogado|junkyard|penguin",
    re.IGNORECASE,
)
_REQUIRED = "".join(chr(code) for code in range(0x21, 0x7F))


@dataclass(frozen=True, slots=True)
class Face:
    """One font file with the family and style names stored in it."""

    path: Path
    family: str
    style: str


def is_reserved(family: str) -> bool:
    """Return whether a family name, as stored in a font file, is reserved for evaluation."""
    name = _compact(family)
    return any(name.startswith(_compact(kept)) for kept in RESERVED) or name.startswith(_ALIASES)


def read_face(path: Path) -> Face:
    """Read the names of a font file.

    Raises:
        InputError: FreeType cannot read the file.
    """
    try:
        family, style = ImageFont.truetype(str(path), 20).getname()
    except OSError as problem:
        raise InputError(f"{path} is not a readable font file: {problem}") from problem
    return Face(path, family or path.stem, style or "Regular")


def training_face(path: Path) -> Face:
    """Read the names of a font file and check that training may use it.

    Raises:
        InputError: unreadable, or of a reserved family.
    """
    face = read_face(path)
    if is_reserved(face.family) or is_reserved(path.stem):
        raise InputError(f"{path} is {face.family!r}: a family reserved for evaluation. Train without it.")
    return face


@lru_cache(maxsize=256)
def load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """Load a font at a pixel size with basic layout, where a glyph's position is the sum of the advances before it."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def covers(path: Path, character: str) -> bool:
    """Return whether the font has a glyph for a character (its bitmap differs from the missing-glyph bitmap)."""
    if character in " \n":
        return True
    font = load(path, 24)
    drawn, missing = font.getmask(character), font.getmask("\uffff")
    return drawn.size[0] > 0 and (drawn.size != missing.size or bytes(drawn) != bytes(missing))


def find_faces(folders: Iterable[Path], reserved: bool = False) -> list[Face]:
    """Find usable faces in folders, sorted by path: readable, Latin, no symbol fonts; reserved ones only on request.

    Raises:
        InputError: no usable face was found.
    """
    found = []
    for path in sorted(
        {p for folder in folders for p in folder.rglob("*") if p.suffix.lower() in {".ttf", ".otf"}}
    ):
        try:
            face = read_face(path) if reserved else training_face(path)
        except InputError:
            continue
        if _suitable(face):
            found.append(face)
    if not found:
        raise InputError("no usable .ttf or .otf font was found. Give folders with Latin fonts (--fonts).")
    return found


def split_families(faces: Sequence[Face]) -> tuple[dict[str, list[Face]], dict[str, list[Face]]]:
    """Split faces by kin (families of one designer or project): (training, held out for validation)."""
    train: dict[str, list[Face]] = {}
    held: dict[str, list[Face]] = {}
    for face in faces:
        kept = any(_compact(face.family).startswith(_compact(name)) for name in HELD_OUT)
        (held if kept else train).setdefault(kin(face.family), []).append(face)
    return train, held


def is_plain(face: Face) -> bool:
    """Return whether a face is upright and of regular weight."""
    return face.style.lower() in {"regular", "book", "roman", "medium", "10 regular", "text", "normal"}


def kin(family: str) -> str:
    """Return the name shared by related families: those of one designer or project."""
    # "Tiresias PCfont" and "Tiresias LPfont" differ little; so do "DejaVu Sans" and "DejaVu Serif".
    first = family.split()[0]
    return family if first in {"GFS", "TeX", "Nimbus", "DejaVu", "Noto", "URW", "CMU"} else first


def _suitable(face: Face) -> bool:
    if _UNSUITABLE.search(f"{face.family} {face.style} {face.path.stem}"):
        return False
    # Noto has one file per script; these are the Latin ones.
    if face.family.startswith("Noto") and face.family not in {"Noto Sans", "Noto Serif", "Noto Sans Mono"}:
        return False
    try:
        if not all(covers(face.path, character) for character in _REQUIRED):
            return False
        font = load(face.path, 24)
        # All-capitals fonts would map small letters to capital shapes.
        return bytes(font.getmask("aegr")) != bytes(font.getmask("AEGR"))
    except OSError:
        return False


def _compact(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
