"""SafetensorsFile: bounded reading and writing of safetensors files, tensor by tensor, independent of tensor names.

Layout: 8 bytes little-endian length, so many bytes of JSON (name → dtype, shape, data_offsets), the data.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from weakref import finalize

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files.formatting import listed
from vitrail.files.json import parse_json_object
from vitrail.files.lfs import PREFIX_SIZE, refuse_pointer
from vitrail.files.opening import open_regular
from vitrail.ops import memory

_PIECE = 1 << 24  # bytes converted at once
_MOST = 1 << 30  # bytes of one system read
_CUT = "{path} was cut while in use: {size:,} of its {whole:,} bytes are left; fetch or save it again, and load it anew."
HEADER_LIMIT = 100_000_000  # the format's own limit
_MOST_TENSORS = 500_000  # of a file; the largest published models have 100,000 in all
# Linux's MAP_NORESERVE; in Python's mmap from 3.13 on.
_NORESERVE = (
    0x4000 if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64", "riscv64") else 0
)

# In the order in which the format's own library lays tensors out (from the last to the first), so that a file
# written here equals, byte for byte, one that it writes.
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
PYTORCH = {"format": "pt"}  # required by readers of other libraries
_ORDER = {dtype: rank for rank, dtype in enumerate(_DTYPES.values())}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Type and shape of a tensor in a file, and the file offset of its data in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def stop(self) -> int:
        """The offset after the data."""
        return self.start + self.nbytes


class SafetensorsFile:
    """An open safetensors file with a completely checked header; the data is mapped, not read.

    Raises:
        CheckpointError: naming the file, if it is missing, truncated, foreign or corrupt: every dtype, shape and offset
            must agree, lie inside the file, and cover it without gap or overlap.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with open_regular(self.path) as stream:
                size = os.fstat(stream.fileno()).st_size
                begin, header = _read_header(stream, size, self.path)
                self.has_metadata = "__metadata__" in header
                self.metadata = _metadata(header.pop("__metadata__", {}), self.path)
                self.entries: Mapping[str, TensorSpec] = _check_entries(header, begin, size, self.path)
                self._map = _map_privately(stream.fileno(), size)
                self._descriptor = os.dup(stream.fileno())
                finalize(self, os.close, self._descriptor)  # a garbage-collected stream would warn
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def tensor(self, name: str) -> Tensor:
        """Return the tensor `name` on the CPU, backed by the mapped file: copy it before changing or keeping it.

        The system kills a process that reads mapped pages of a file truncated later; `copied` avoids this, and
        `refuse_cut` checks again.

        Raises:
            CheckpointError: the file was truncated since it was opened.
        """
        self.refuse_cut()
        entry = self.entries[name]
        count = math.prod(entry.shape)
        if count == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        flat = torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=entry.start)
        return flat.view(entry.shape)

    def copied(
        self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return a copy of the tensor `name`, read and not mapped; CheckpointError for a truncated or failing file."""
        entry = self.entries[name]
        made = memory.empty(entry.shape, dtype or entry.dtype, device)
        if not hasattr(os, "preadv"):
            return made.copy_(self.tensor(name))
        values, count = made.view(-1), made.numel()
        direct = made.device.type == "cpu" and made.dtype == entry.dtype
        piece = max(1, count if direct else _PIECE // entry.dtype.itemsize)
        for first in range(0, count, piece):
            part = values[first : first + piece]
            read = part if direct else torch.empty(len(part), dtype=entry.dtype)
            self._read(read.view(torch.uint8).numpy(), entry.start + first * entry.dtype.itemsize)
            if not direct:
                part.copy_(read)
        return made

    def refuse_cut(self) -> None:
        """Raise CheckpointError if the file is shorter than when it was opened."""
        try:
            size = self._map.size()
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}.") from error
        if size < len(self._map):
            raise CheckpointError(_CUT.format(path=self.path, size=size, whole=len(self._map)))

    def _read(self, buffer: Any, start: int) -> None:
        """Fill `buffer` with the file's bytes from `start` on."""
        rest = memoryview(buffer).cast("B")
        try:
            while rest:
                count = os.preadv(self._descriptor, [rest[:_MOST]], start)
                if not count:
                    self.refuse_cut()
                    raise OSError(f"nothing could be read at byte {start:,}")
                rest, start = rest[count:], start + count
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}.") from error


def _map_privately(number: int, size: int) -> mmap.mmap:
    """Map the file's pages privately, large pages if possible; writes never reach the file."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(number, size, access=mmap.ACCESS_COPY)
    # Without reservation a file may exceed the machine's memory.
    flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", _NORESERVE)
    mapping = mmap.mmap(number, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    memory.ask_for_large(mapping)
    return mapping


def _read_header(stream: BinaryIO, size: int, path: Path) -> tuple[int, dict[str, Any]]:
    """Return the header and the offset of the data."""
    if size < 8:
        raise CheckpointError(
            f"{path} is not a safetensors file: it has {size} bytes, the length field needs 8."
        )
    begin = stream.read(PREFIX_SIZE)
    refuse_pointer(begin, str(path))
    stream.seek(8)
    length = int.from_bytes(begin[:8], "little")
    if length > HEADER_LIMIT or length > size - 8:
        raise CheckpointError(
            f"{path} is not a safetensors file or is truncated: its first 8 bytes announce a header "
            f"of {length:,} bytes, the file has {size:,} and a header at most {HEADER_LIMIT:,}."
        )
    data = stream.read(length)
    if not data.startswith(b"{"):
        raise CheckpointError(f"{path} is not a safetensors file: its header does not begin with '{{'.")
    objects, lists = data.count(b"{"), data.count(b"[")  # one object with two lists per tensor
    if objects > _MOST_TENSORS or lists > 8 * objects + _MOST_TENSORS:
        raise CheckpointError(
            f"{path} is corrupt: its header holds {objects:,} objects and {lists:,} lists; a file has at most "
            f"{_MOST_TENSORS:,} tensors."
        )
    return 8 + length, parse_json_object(data, f"the header of {path}", unique_keys=True)


def _metadata(value: Any, path: Path) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(f"{path} is corrupt: __metadata__ in its header must map names to texts.")
    return value


def _check_entries(header: dict[str, Any], begin: int, size: int, path: Path) -> dict[str, TensorSpec]:
    entries = {name: _entry(name, value, begin, path) for name, value in header.items()}
    beyond = [name for name, entry in entries.items() if entry.stop > size]
    if beyond:
        raise CheckpointError(
            f"{path} is truncated: it has {size:,} bytes, and {len(beyond)} of its {len(entries)} tensors end "
            f"beyond them: {listed(beyond)}."
        )
    position = begin
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            fault = "overlaps its predecessor" if entry.start < position else "leaves a gap before it"
            raise CheckpointError(f"{path} is corrupt: tensor {name[:200]!r} {fault} (byte {entry.start:,}).")
        position = entry.stop
    if position != size:
        raise CheckpointError(
            f"{path} is corrupt: its tensors end at byte {position:,}, but the file has {size:,} bytes."
        )
    return entries


def _entry(name: str, value: Any, begin: int, path: Path) -> TensorSpec:
    """Check one tensor's record, each field by itself and against the others."""

    def fault(text: str) -> CheckpointError:
        return CheckpointError(f"{path} is corrupt: tensor {name[:200]!r} {text}.")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise fault("must have exactly dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise fault(f"has the dtype {str(code)[:40]!r}; Vitrail reads {', '.join(_DTYPES)}")
    if not _naturals(shape) or len(shape) > 64:
        raise fault("has a shape that is no list of whole numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise fault("has data_offsets that are not two whole numbers")
    start, stop = offsets
    needed = math.prod(shape) * dtype.itemsize
    if stop - start != needed:
        need = needed if needed < 2**63 else "too many"
        raise fault(f"needs {need} bytes for {code} {shape}, but data_offsets span {stop - start}")
    return TensorSpec(dtype, tuple(shape), begin + start)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    *,
    order: Sequence[str] | None = None,
    align: int = 8,
    metadata: Mapping[str, str] | None = PYTORCH,
) -> None:
    """Write `tensors` to a new file, whose bytes depend on names, dtypes, shapes, values, `order` and `align` only.

    The caller removes the file after a failure (see `weights.save`). Tensors are written one after the other; only one
    that is not contiguous on the CPU is copied first.

    Args:
        order: the names in the order of their data; None: the format's own library's order.
        align: bytes; the data section begins at a multiple.
        metadata: texts in the header; None: none, as in the format's own library.
    """
    names = library_order(tensors) if order is None else order
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    header = new_header(specs, names, metadata)
    with Path(path).open("xb") as stream:
        stream.write(header_bytes(header, align))
        for name in names:
            write_values(stream, tensors[name])


def copy_safetensors(
    path: str | os.PathLike[str],
    source: SafetensorsFile,
    names: Mapping[str, str],
    tensor: Callable[[str], Tensor],
) -> None:
    """Write `source` again under other names: same order, types, shapes, offsets and metadata, tensor by tensor.

    One tensor is held at a time. The caller removes the file after a failure.

    Args:
        names: name in `source` → name in the new file, for each.
        tensor: returns the values for a name of `source`, of its type and shape.
    """
    begin = min((entry.start for entry in source.entries.values()), default=0)
    header: dict[str, Any] = {"__metadata__": dict(source.metadata)} if source.has_metadata else {}
    for name, entry in source.entries.items():
        header[names[name]] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [entry.start - begin, entry.stop - begin],
        }
    with Path(path).open("xb") as stream:
        stream.write(header_bytes(header))
        for name in sorted(source.entries, key=lambda name: source.entries[name].start):
            write_values(stream, tensor(name))


def library_order(tensors: Mapping[str, Tensor | tuple[torch.dtype, tuple[int, ...]]]) -> list[str]:
    """Return the names in the order of the format's own library: wide types first, then by name."""

    def rank(name: str) -> tuple[int, str]:
        found = tensors[name]
        dtype = found.dtype if isinstance(found, Tensor) else found[0]
        dtype_name(name, dtype)
        return -_ORDER[dtype], name

    return sorted(tensors, key=rank)


def dtype_name(name: str, dtype: torch.dtype) -> str:
    """Return the format's name of a type; CheckpointError, naming the tensor, for a type without one."""
    if dtype not in _NAMES:
        raise CheckpointError(f"tensor {name!r} has the dtype {dtype}, which safetensors cannot hold here.")
    return _NAMES[dtype]


def new_header(
    specs: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    order: Sequence[str],
    metadata: Mapping[str, str] | None = PYTORCH,
) -> dict[str, Any]:
    """Return the header of a file with tensors of these types and shapes, contiguous in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name in order:
        dtype, shape = specs[name]
        stop = position + math.prod(shape) * dtype.itemsize
        record = {"dtype": dtype_name(name, dtype), "shape": list(shape), "data_offsets": [position, stop]}
        header[name], position = record, stop
    return header


def header_bytes(header: dict[str, Any], align: int = 8) -> bytes:
    """Return the start of a file: the header's length and text, padded with spaces to a multiple of `align`."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % align)
    return len(text).to_bytes(8, "little") + text


def write_values(stream: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's values as the file holds them."""
    plain = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    stream.write(plain.numpy().data)
