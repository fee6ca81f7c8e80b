"""The table of file formats of quantised matrices: a new one is a file in this folder and a line here."""

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
    """The format of a module beside whose weight a file holds these keys, with its options; None: it is not packed."""
    found = (format.recognize(parts) for format in FORMATS.values())
    return next((format for format in found if format is not None), None)


def side_keys() -> tuple[str, ...]:
    """All keys that lie beside packed weights, after the module's name."""
    return tuple(key for format in FORMATS.values() for key in format.keys)


def file_layout(tensors: Mapping[str, Spec], method: str | None = None) -> tuple[list[str], int]:
    """Order and alignment of a file with these tensors; `method`: of the checkpoint's configuration, where there is one.

    A format that is used where it is mapped decides where it is in the file or the configuration's.
    """
    for format in FORMATS.values():
        if format.alignment and (format.method == method or any(n.endswith(format.keys) for n in tensors)):
            return format.file_order(tensors), format.alignment
    return library_order(tensors), 8
