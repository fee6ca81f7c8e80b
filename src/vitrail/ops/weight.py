"""A matrix as it is stored: a plain tensor, or codes with scales. Holds decoding, not the files' layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

# bitsandbytes multiplies by this number instead of dividing by 127; the last bit of a weight depends on it.
INT8_STEP = 7.874015718698502e-3
# Scales of the first level that share one scale of the second.
NESTED_GROUP = 256


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantised matrix, shape (out, in): its codes and scales exactly as a checkpoint stores them.

    kind     the format: "nf4", "fp4" (codes of 4 bits that look up a map) or "int8" (one scale per row).
    group    neighbouring elements of the flattened matrix that share one scale (int8: a whole row).
    tensors  nf4/fp4: codes uint8 (ceil(out·in/2),), quant_map (16,), absmax float32 (groups,) — or, nested,
             absmax uint8 with nested_map (256,), nested_absmax (ceil(groups/256),) and nested_offset ().
             int8: codes int8 (out, in), scale float32 (out,).
    dtype    the format's own result type: decoded values are rounded to it before anything else.
    """

    kind: str
    shape: tuple[int, int]
    group: int
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def device(self) -> torch.device:
        return self.tensors["codes"].device


Weight: TypeAlias = "Tensor | PackedWeight"


def dequantize(weight: Weight, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """The plain matrix (len(rows), in) in `dtype`: the oracle that every faster kernel must equal.

    `rows` is a slice with step 1. A plain tensor is cut and cast.
    """
    if isinstance(weight, Tensor):
        return weight[rows].to(dtype)
    start, stop, _ = rows.indices(weight.shape[0])
    decoded = _DECODERS[weight.kind](weight, start, max(start, stop))
    return decoded.to(weight.dtype).to(dtype)


def scales(weight: PackedWeight, first: int = 0, last: int | None = None) -> Tensor:
    """The float32 scales of groups first … last-1 of an nf4 or fp4 weight; the second level is undone."""
    stored = weight.tensors
    absmax = stored["absmax"][first:last]
    if "nested_map" not in stored:
        return absmax.float()
    outer = torch.arange(first, first + absmax.numel(), device=absmax.device) // NESTED_GROUP
    product = stored["nested_map"][absmax.int()] * stored["nested_absmax"][outer]
    return product + stored["nested_offset"]  # two roundings, as in the format


def _decode_int8(weight: PackedWeight, start: int, stop: int) -> Tensor:
    codes, scale = weight.tensors["codes"][start:stop], weight.tensors["scale"][start:stop]
    return codes.float() * scale[:, None] * INT8_STEP


def _decode_map4(weight: PackedWeight, start: int, stop: int) -> Tensor:
    """Rows start … stop-1. Groups run over the flattened matrix, across row ends."""
    columns, group = weight.shape[1], weight.group
    first, last = start * columns // group, -(-stop * columns // group)
    packed = weight.tensors["codes"][first * group // 2 : last * group // 2]
    quant_map = weight.tensors["quant_map"].float()
    pairs = torch.cartesian_prod(quant_map, quant_map)  # row = byte: high nibble first
    values = pairs.index_select(0, packed.int()).flatten()
    filled = values.new_zeros((last - first) * group)
    filled[: values.numel()] = values  # the last group of a matrix may be short
    decoded = (filled.view(-1, group) * scales(weight, first, last)[:, None]).flatten()
    offset = start * columns - first * group
    return decoded[offset : offset + (stop - start) * columns].view(stop - start, columns)


_DECODERS: dict[str, Callable[[PackedWeight, int, int], Tensor]] = {
    "nf4": _decode_map4,
    "fp4": _decode_map4,
    "int8": _decode_int8,
}
