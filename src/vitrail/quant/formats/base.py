"""WeightFormat: how a file holds a quantised matrix, and what is refused unless a format does it. Multiplies nothing.

A format is a codec between a file's tensors and a layout in memory (ops/weight.py). One file here and one line in the table
of __init__.py add one; a layout of its own, with its kernels, only where none of the existing fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vitrail.errors import UnsupportedError
from vitrail.files.safetensors import library_order
from vitrail.files.safetensors_writer import Spec
from vitrail.ops.weight import PackedWeight, dequantize


class StoredConfig:
    """The quantization_config of a checkpoint whose format is only read: the values as they stand in config.json."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.quant_method: str = self.values["quant_method"]

    @property
    def title(self) -> str:
        """How messages name it."""
        return self.quant_method

    def is_quantizable(self) -> bool:
        """Whether layers are packed."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """What config.json says of it."""
        return dict(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredConfig) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]  # the values may be lists

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.values!r})"


class WeightFormat:
    """One file format of a quantised matrix (out, in). A value: the same format with the same options is equal.

    Keys of a file's tensors are given without the module's name: "weight", "weight.scales", "SCB".
    """

    name: str
    """As options, tables and reports write it."""
    method: ClassVar[str]
    """quant_method in a config.json."""
    keys: ClassVar[tuple[str, ...]]
    """What lies beside a weight in a file: a module with one of these keys is in this format."""
    packs: ClassVar[bool] = True
    """False for plain floats."""
    tables: ClassVar[bool] = False
    """Whether a table of embeddings may be in it."""
    stores_dtype: ClassVar[bool] = False
    """Whether a file says what decoded values are rounded to; else it is the model's dtype."""
    follows_dtype: ClassVar[bool] = False
    """Whether `.to(dtype)` changes what decoded values are rounded to."""
    quantizes: ClassVar[bool] = False
    """Whether `quantize` is there."""
    alignment: ClassVar[int] = 0
    """Where data begin in a file, in bytes, so that its tensors can be used where they are mapped; 0: they are copied."""

    def recognize(self, parts: Mapping[str, Tensor]) -> WeightFormat | None:
        """This format, with the options that the file's tensors show, or None where they are another's."""
        return self if any(key in self.keys for key in parts) else None

    def group(self, columns: int, wanted: int) -> int | None:
        """The group that rows of so many weights get where `wanted` is asked for; None: they cannot be packed."""
        return wanted

    def specs(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> dict[str, Spec]:
        """Key → type and shape of what a file holds for a matrix, in the order of `to_state`."""
        raise self._cannot("planned without its values")

    def from_state(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        group: int | None = None,
    ) -> PackedWeight:
        """The matrix of module `name` from what a file holds for it.

        shape: what the model has there.  dtype: the result type, unless the file says one.  group: the one that the
        configuration says, where it does. CheckpointError names what is missing or does not fit.
        """
        raise self._cannot("read")

    def to_state(self, weight: PackedWeight) -> dict[str, Tensor]:
        """What a file holds for a matrix; UnsupportedError from a format that is not written."""
        raise self._cannot("saved")

    def quantize(
        self, weight: Tensor, group: int, *, name: str, dtype: torch.dtype, device: torch.device
    ) -> PackedWeight:
        """A matrix of floats in this format, on `device`; UnsupportedError from a format that is only read.

        CheckpointError begins with `name` where the matrix holds what is no finite number.
        """
        raise self._cannot("quantised to")

    def dequantize(self, weight: PackedWeight, rows: slice = slice(None)) -> Tensor:
        """Rows of the matrix, decoded, in its own result type: the layout's definition."""
        return dequantize(weight, weight.dtype, rows)

    def can_be_mapped(self, weight: PackedWeight) -> bool:
        """Whether kernels can use these tensors of a file where they are mapped."""
        return False

    def packed_bytes(self, shape: tuple[int, int], group: int) -> int:
        """What a quantised matrix takes in memory."""
        specs = self.specs(shape, group, torch.float32).values()
        return sum(math.prod(dims) * dtype.itemsize for dtype, dims in specs)

    def working_bytes(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> int:
        """What `quantize` needs meanwhile, beside its result, where values are asked for in `dtype`."""
        return math.prod(shape) * dtype.itemsize

    def file_order(self, tensors: Mapping[str, Spec]) -> list[str]:
        """The names of a file's tensors in the order in which they are written."""
        return library_order(tensors)

    def configs(self) -> dict[str, Any]:
        """Name → configuration, for every way of quantising to it that estimates list."""
        return {}

    def implied_config(self, weights: Mapping[str, StoredWeight]) -> Any:
        """What a config.json should say of a checkpoint whose module paths have these weights, the first in this format."""
        return StoredConfig({"quant_method": self.method})

    def refuse_unless_quantizes(self) -> None:
        """Raise the error of `quantize` before any work is done."""
        if not self.quantizes:
            raise self._cannot("quantised to")

    def _cannot(self, done: str) -> UnsupportedError:
        return UnsupportedError(
            f"weights in {self.name} ({self.method}) cannot be {done} here; Vitrail does not do that with this format. "
            "Use the model's unquantised checkpoint."
        )


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A matrix of a file: its format there, and how it lies in memory."""

    format: WeightFormat
    weight: PackedWeight
