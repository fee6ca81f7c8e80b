"""Which font files the reader may learn from: found by folder, named by the file itself, reserved families refused."""

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
"""Families kept for evaluation: never drawn in training, never used to choose a model."""

HELD_OUT: tuple[str, ...] = ("Oxygen", "Vollkorn", "PT Sans", "B612")
"""Families kept out of training for the recipe's own validation."""

# Names by which files of a reserved family also call themselves.
_ALIASES = ("linlibertine", "linbiolinum")
# Families of other scripts, of symbols, and shapes that are no ordinary print.
_UNSUITABLE = re.compile(
    r"symbol|emoji|dingbat|math|ornament|braille|icons?\b|standard symbols|chancery|zapfino|"
    r"small ?caps|\bcaps\b|keyboard|initials|chorus|script|monoisome|unslanted|quotation|infofontz|signfontz|pcfontz|"
    r"D050000L|Z003|domestic manners|abogado|junkyard|penguin",
    re.IGNORECASE,
)
_REQUIRED = "".join(chr(code) for code in range(0x21, 0x7F))


@dataclass(frozen=True, slots=True)
class Face:
    """One font file with the names that it states itself."""

    path: Path
    family: str
    style: str


def is_reserved(family: str) -> bool:
    """Whether a family name (as a font file states it) belongs to a family kept for evaluation."""
    name = _compact(family)
    return any(name.startswith(_compact(kept)) for kept in RESERVED) or name.startswith(_ALIASES)


def read_face(path: Path) -> Face:
    """The face of a font file.

    Raises:
        InputError: the file is no font that FreeType can read.
    """
    try:
        family, style = ImageFont.truetype(str(path), 20).getname()
    except OSError as problem:
        raise InputError(f"{path} is not a readable font file: {problem}") from problem
    return Face(path, family or path.stem, style or "Regular")


def training_face(path: Path) -> Face:
    """The face of a font file that training may use.

    Raises:
        InputError: unreadable, or of a reserved family.
    """
    face = read_face(path)
    if is_reserved(face.family) or is_reserved(path.stem):
        raise InputError(f"{path} is {face.family!r}: a family reserved for evaluation. Train without it.")
    return face


@lru_cache(maxsize=256)
def load(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """The font at a pixel size; plain layout, so that a glyph's place is the sum of the advances before it."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=65536)
def covers(path: Path, character: str) -> bool:
    """Whether the font has its own glyph for a character (its image differs from the one for a missing glyph)."""
    if character in " \n":
        return True
    font = load(path, 24)
    drawn, missing = font.getmask(character), font.getmask("\uffff")
    return drawn.size[0] > 0 and (drawn.size != missing.size or bytes(drawn) != bytes(missing))


def find_faces(folders: Iterable[Path], reserved: bool = False) -> list[Face]:
    """Usable faces below the folders, sorted by path: readable, Latin, no symbols; reserved ones only if asked for.

    Raises:
        InputError: nothing usable was found.
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
    """Faces by kin, that is families of one designer or project: (for training, held out for validation)."""
    train: dict[str, list[Face]] = {}
    held: dict[str, list[Face]] = {}
    for face in faces:
        kept = any(_compact(face.family).startswith(_compact(name)) for name in HELD_OUT)
        (held if kept else train).setdefault(kin(face.family), []).append(face)
    return train, held


def is_plain(face: Face) -> bool:
    """Whether the face is upright and of ordinary weight."""
    return face.style.lower() in {"regular", "book", "roman", "medium", "10 regular", "text", "normal"}


def kin(family: str) -> str:
    """The name that kindred families share: those of one designer or project."""
    # "Tiresias PCfont" and "Tiresias LPfont" differ little; "DejaVu Sans" and "DejaVu Serif" do.
    first = family.split()[0]
    return family if first in {"GFS", "TeX", "Nimbus", "DejaVu", "Noto", "URW", "CMU"} else first


def _suitable(face: Face) -> bool:
    if _UNSUITABLE.search(f"{face.family} {face.style} {face.path.stem}"):
        return False
    # Noto has a file per script; the Latin ones are these.
    if face.family.startswith("Noto") and face.family not in {"Noto Sans", "Noto Serif", "Noto Sans Mono"}:
        return False
    try:
        if not all(covers(face.path, character) for character in _REQUIRED):
            return False
        font = load(face.path, 24)
        # Fonts of capitals only would teach that small letters look like capitals.
        return bytes(font.getmask("aegr")) != bytes(font.getmask("AEGR"))
    except OSError:
        return False


def _compact(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
