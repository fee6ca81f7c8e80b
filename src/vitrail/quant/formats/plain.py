"""Floats as they are: the format, in plans and reports, of a matrix that is not packed. Files hold nothing beside it."""

from __future__ import annotations

from dataclasses import dataclass

from vitrail.quant.formats.base import WeightFormat


@dataclass(frozen=True)
class PlainFormat(WeightFormat):
    """A plain matrix in a float type, under the word that options and reports have for it."""

    name: str

    method = ""
    keys = ()
    packs = False


BF16 = PlainFormat("bf16")
"""16 bits: as in the files, or rounded to bfloat16."""
