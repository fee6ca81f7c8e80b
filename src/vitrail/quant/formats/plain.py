"""PlainFormat: the format of a matrix that is not packed, for plans and reports."""

from __future__ import annotations

from dataclasses import dataclass

from vitrail.quant.formats.base import WeightFormat


@dataclass(frozen=True)
class PlainFormat(WeightFormat):
    """A plain float matrix, with its name in options and reports."""

    name: str

    method = ""
    keys = ()
    packs = False


BF16 = PlainFormat("bf16")
"""16 bits: as in the files, or rounded to bfloat16."""
