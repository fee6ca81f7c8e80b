"""WeightFormat: how a file stores a quantised matrix; operations raise unless a format supports them.

A format is a codec between a file's tensors and a memory layout (ops/weight.py). A new one is a file here and a line in
the table of __init__.py; it needs its own layout, with kernels, only if no existing one fits.
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
    """quantization_config of a checkpoint in a read-only format, with the values of config.json."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.quant_method: str = self.values["quant_method"]

    @property
    def title(self) -> str:
        """Name for messages."""
        return self.quant_method

    def is_quantizable(self) -> bool:
        """Return whether layers are packed."""
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the quantization_config for config.json."""
        return dict(self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredConfig) and self.values == other.values

    __hash__ = None  # type: ignore[assignment]  # the values may be lists

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.values!r})"


class WeightFormat:
    """A file format of a quantised matrix (out, in). Formats with equal options are equal.

    Keys of a file's tensors are without the module's name: "weight", "weight.scales", "SCB".
    """

    name: str
    """Name in options, tables and reports."""
    method: ClassVar[str]
    """quant_method in a config.json."""
    keys: ClassVar[tuple[str, ...]]
    """Keys beside a weight in a file that identify the format."""
    packs: ClassVar[bool] = True
    """False for plain floats."""
    tables: ClassVar[bool] = False
    """Whether embeddings can be packed."""
    stores_dtype: ClassVar[bool] = False
    """Whether files store the dtype of decoded values; else it is the model's."""
    follows_dtype: ClassVar[bool] = False
    """Whether `.to(dtype)` changes the dtype of decoded values."""
    quantizes: ClassVar[bool] = False
    """Whether `quantize` is supported."""
    alignment: ClassVar[int] = 0
    """Alignment in bytes of the data section for mapping tensors in place; 0: tensors are copied."""

    def recognize(self, parts: Mapping[str, Tensor]) -> WeightFormat | None:
        """Return this format with the options found in the file's tensors, or None if they are in another format."""
        return self if any(key in self.keys for key in parts) else None

    def group(self, columns: int, wanted: int) -> int | None:
        """Return the group size of rows of `columns` weights if `wanted` is requested; None: they cannot be packed."""
        return wanted

    def specs(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> dict[str, Spec]:
        """Return key → dtype and shape of a matrix's tensors in a file, in the order of `to_state`."""
        raise self._cannot("planned without its values")

    def from_state(
        self,
        name: str,
        parts: Mapping[str, Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        group: int | None = None,
    ) -> PackedWeight:
        """Build the matrix of module `name` from its tensors in a file.

        Args:
            name: of the module, for messages.
            parts: key → tensor.
            shape: (out, in) of the model's module.
            dtype: of decoded values, unless the file stores one.
            group: from the configuration, if any.

        Raises:
            CheckpointError: a tensor is missing or does not fit.
        """
        raise self._cannot("read")

    def to_state(self, weight: PackedWeight) -> dict[str, Tensor]:
        """Return a matrix's tensors for a file; UnsupportedError for a read-only format."""
        raise self._cannot("saved")

    def quantize(
        self, weight: Tensor, group: int, *, name: str, dtype: torch.dtype, device: torch.device
    ) -> PackedWeight:
        """Quantise a float matrix on `device`; UnsupportedError for a read-only format.

        Raises:
            CheckpointError: non-finite values; the message begins with `name`.
        """
        raise self._cannot("quantised to")

    def dequantize(self, weight: PackedWeight, rows: slice = slice(None)) -> Tensor:
        """Decode rows of the matrix to its dtype, by the definition of its layout."""
        return dequantize(weight, weight.dtype, rows)

    def can_be_mapped(self, weight: PackedWeight) -> bool:
        """Return whether kernels can read these tensors in place in a mapped file."""
        return False

    def packed_bytes(self, shape: tuple[int, int], group: int) -> int:
        """Return bytes of a quantised matrix in memory."""
        specs = self.specs(shape, group, torch.float32).values()
        return sum(math.prod(dims) * dtype.itemsize for dtype, dims in specs)

    def working_bytes(self, shape: tuple[int, int], group: int, dtype: torch.dtype) -> int:
        """Return temporary bytes of `quantize`, without its result, for values of `dtype`."""
        return math.prod(shape) * dtype.itemsize

    def file_order(self, tensors: Mapping[str, Spec]) -> list[str]:
        """Return the order in which a file's tensors are written."""
        return library_order(tensors)

    def configs(self) -> dict[str, Any]:
        """Return name → configuration of every variant that estimates list."""
        return {}

    def implied_config(self, weights: Mapping[str, StoredWeight]) -> Any:
        """Return the configuration implied by these weights (module path → weight), the first of which is in this format."""
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
    """A matrix in a file: its format, and its packed weight."""

    format: WeightFormat
    weight: PackedWeight
