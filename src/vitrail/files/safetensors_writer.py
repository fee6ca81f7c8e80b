"""SafetensorsWriter: a safetensors file written out of order: first the header, then each tensor at its offset."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files.safetensors import header_bytes, new_header, write_values

Spec = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""


class SafetensorsWriter:
    """A new file for the tensors `specs`; a context that removes the file after an error.

    `write` accepts the tensors in any order. Leaving the context checks that every tensor was written, and flushes the
    file to the disk.

    Args:
        specs: name → type and shape.
        order: the names in the order of their data, without gaps.
        align: bytes; the data section begins at a multiple, the header padded with spaces.

    Raises:
        OSError: an error of the disk.
    """

    def __init__(
        self, path: str | os.PathLike[str], specs: Mapping[str, Spec], order: Sequence[str], *, align: int = 8
    ) -> None:
        self.path = Path(path)
        self._specs = dict(specs)
        header = new_header(specs, order)
        self._header = header_bytes(header, align)
        offsets = {name: header[name]["data_offsets"] for name in order}
        self._places: dict[str, int] = {name: start for name, (start, _) in offsets.items()}
        self._end = len(self._header) + max((stop for _, stop in offsets.values()), default=0)

    def __enter__(self) -> SafetensorsWriter:
        self._stream = self.path.open("xb")
        try:
            self._stream.write(self._header)
        except BaseException:
            self._give_up()
            raise
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor's values at their offset; each name once, with the announced type and shape."""
        dtype, shape = self._specs[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"tensor {name!r} was announced as {dtype} {shape}, but is {tensor.dtype} {tuple(tensor.shape)}."
            )
        self._stream.seek(len(self._header) + self._places.pop(name))
        write_values(self._stream, tensor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._give_up()
            return
        try:
            if self._places:
                raise CheckpointError(f"{self.path} lacks values for {', '.join(self._places)[:400]}.")
            self._stream.truncate(self._end)  # extends the file over empty tensors at the end
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        # Closing flushes the buffer, perhaps to a full disk: the first error is the one to report.
        with contextlib.suppress(OSError):
            self._stream.close()
        self.path.unlink(missing_ok=True)
