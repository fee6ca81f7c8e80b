"""Table of the file formats of quantised matrices. A new format is a file in this folder and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitrail.files.safetensors import library_order
from vitrail.files.safetensors_writer import Spec
from vitrail.quant.formats.base import StoredWeight as StoredWeight, WeightFormat as WeightFormat
from vitrail.quant.formats.bitsandbytes import FP4, INT8, NF4
from vitrail.quant.formats.vitrail import Q4, Q8

FORMATS: dict[str, WeightFormat] = {format.name: format for format in (NF4, FP4, INT8, Q4, Q8)}


def recognize(parts: Mapping[str, Tensor]) -> WeightFormat | None:
    """Return the format of a module with these keys beside its weight, with its options; None: it is not packed."""
    found = (format.recognize(parts) for format in FORMATS.values())
    return next((format for format in found if format is not None), None)


def side_keys() -> tuple[str, ...]:
    """Return all keys that packed weights have beside the weight, after the module's name."""
    return tuple(key for format in FORMATS.values() for key in format.keys)


def file_layout(tensors: Mapping[str, Spec], method: str | None = None) -> tuple[list[str], int]:
    """Return order and alignment of the tensors in a file; `method`: quant_method of the checkpoint, if any.

    They are those of a mappable format, if the file or the configuration has one.
    """
    for format in FORMATS.values():
        if format.alignment and (format.method == method or any(n.endswith(format.keys) for n in tensors)):
            return format.file_order(tensors), format.alignment
    return library_order(tensors), 8
