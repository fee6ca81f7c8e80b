"""Matrices in memory: a plain tensor, or codes with scales in one of several layouts. File formats: quant/formats/.

Kernels read a layout. Several file formats (quant/formats/) may repack into one; each layout has one definition here,
`dequantize`, which every kernel must equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TypeAlias

import torch
from torch import Tensor

from vitrail.ops import packing_layout

# bitsandbytes multiplies by this number instead of dividing by 127; it affects the last bit of a weight.
INT8_STEP = 7.874015718698502e-3
# First-level scales that share one second-level scale.
NESTED_GROUP = 256


class Layout(str, Enum):
    """Memory layout of a matrix (out, in). P = ceil(out/16) panels of 16 rows (ops/packing_layout.py).

    MAP4       codes of 4 bits that look up a map, over the flattened matrix: codes uint8 (ceil(out·in/2),), quant_map
               (16,), absmax float32 (groups,) — or, nested, absmax uint8 with nested_map (256,), nested_absmax
               (ceil(groups/256),) and nested_offset (). A group is adjacent elements of the flattened matrix.
    INT8_ROWS  codes int8 (out, in), scale float32 (out,). A group is a row.
    PANELS4    codes uint8 (P, in/8, 64), scales bfloat16 (P, in/group, 16), levels int8 (16,) ascending within −63 … 63.
               A group is adjacent columns of a row.
    PANELS8    codes int8 (P, in/4, 64), scales as in PANELS4.
    PANELS16   codes bfloat16 (P, ceil(in/2), 16, 2). Groups are 1.
    """

    MAP4 = "map4"
    INT8_ROWS = "int8_rows"
    PANELS4 = "panels4"
    PANELS8 = "panels8"
    PANELS16 = "panels16"

    def __str__(self) -> str:
        return self.value  # the same in messages on every version of Python

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the layout's tensors, in operator order; nested ones may be absent."""
        return _DEFINITIONS[self].parts


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantised matrix of `shape` (out, in) in memory.

    Attributes:
        layout: memory layout of its tensors.
        group: number of adjacent elements that share one scale; see the layout.
        tensors: the layout's parts by name.
        dtype: decoded values are rounded to it first.
    """

    layout: Layout
    shape: tuple[int, int]
    group: int
    tensors: Mapping[str, Tensor]
    dtype: torch.dtype = field(default=torch.float32)

    @property
    def device(self) -> torch.device:
        return self.tensors["codes"].device

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def with_tensors(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> PackedWeight:
        """Return the same matrix with other tensors, for example after a move, and optionally another dtype."""
        return replace(self, tensors=tensors, dtype=self.dtype if dtype is None else dtype)

    def ordered_parts(self) -> list[Tensor | None]:
        """Return its tensors in the order of the layout's parts; None for an absent one."""
        return [self.tensors.get(part) for part in self.layout.parts]


Weight: TypeAlias = "Tensor | PackedWeight"


def dequantize(weight: Weight, dtype: torch.dtype, rows: slice = slice(None)) -> Tensor:
    """Decode a weight: the definition that every kernel must equal.

    Args:
        weight: (out, in); a plain tensor is sliced and cast.
        dtype: of the result.
        rows: slice of the rows, with step 1.

    Returns:
        The plain matrix (len(rows), in).
    """
    if isinstance(weight, Tensor):
        return weight[rows].to(dtype)
    start, stop, _ = rows.indices(weight.shape[0])
    decoded = _DEFINITIONS[weight.layout].decode(weight, start, max(start, stop))
    return decoded.to(weight.dtype).to(dtype)


def dequantize_rows(weight: PackedWeight, rows: Tensor) -> Tensor:
    """Return rows (n,) of the matrix in any order, (n, in) in the weight's dtype: an embedding look-up.

    For panels nothing is read on the host, so that a decoding step can be compiled.
    """
    pick = _DEFINITIONS[weight.layout].pick
    if pick is not None:
        return pick(weight, rows).to(weight.dtype)
    numbers, count = rows.tolist(), weight.shape[0]
    if wrong := [row for row in numbers if not 0 <= row < count]:
        raise IndexError(f"rows of a table of {count} lie in 0 … {count - 1}; got {wrong[0]}.")
    table = [dequantize(weight, weight.dtype, slice(row, row + 1)) for row in numbers]
    if not table:
        return torch.empty(0, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return torch.cat(table)


def scales(weight: PackedWeight, first: int = 0, last: int | None = None) -> Tensor:
    """Return the float32 scales of groups first … last-1 in MAP4, with the second level decoded."""
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
    """Decode rows start … stop-1. Groups run over the flattened matrix, across row ends."""
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


def integer_step(layout: Layout) -> float:
    """Return the value of one integer step in panels before scaling; a power of two, so that it causes no rounding."""
    return 2.0**-6 if layout == Layout.PANELS4 else 2.0**-7


def stored_integers(weight: PackedWeight, first: int, last: int) -> Tensor:
    """Return the int8 weights of panels first … last-1 of a matrix in PANELS4 or PANELS8, before scaling: (rows, in).

    Those of PANELS4 are in byte order (packing_layout.paired), which is faster than column order.
    """
    rows = packing_layout.byte_rows(weight.tensors["codes"][first:last])
    return rows if weight.layout == Layout.PANELS8 else _levels(weight, rows)


def _levels(weight: PackedWeight, codes: Tensor) -> Tensor:
    """Look up the levels of both codes in each byte, side by side: (…, n) uint8 → (…, 2n) int8."""
    levels = weight.tensors["levels"]
    pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], 1).view(torch.int16).view(-1)
    return (
        pairs.index_select(0, codes.flatten().int())
        .view(torch.int8)
        .view(*codes.shape[:-1], 2 * codes.shape[-1])
    )


def _scaled(weight: PackedWeight, whole: Tensor, row_scales: Tensor) -> Tensor:
    """Scale integers (n, in) by scales (n, groups) to float32 values: one rounding."""
    values = whole.float() * integer_step(weight.layout)
    return (values.view(*row_scales.shape, weight.group) * row_scales.float()[:, :, None]).flatten(1)


def _decode_panels(weight: PackedWeight, start: int, stop: int) -> Tensor:
    """Decode rows start … stop-1, and only the panels that contain them."""
    first, inside = _panels_of(start, stop)
    last = packing_layout.panel_count(stop)
    row_scales = packing_layout.unpack_scales(weight.tensors["scales"][first:last])[inside]
    whole = stored_integers(weight, first, last)[inside]
    if weight.layout == Layout.PANELS4:
        whole = packing_layout.unpaired(whole)
    return _scaled(weight, whole, row_scales)


def _decode_panels16(weight: PackedWeight, start: int, stop: int) -> Tensor:
    first, inside = _panels_of(start, stop)
    codes = weight.tensors["codes"][first : packing_layout.panel_count(stop)]
    return packing_layout.unpack_pairs(codes)[inside, : weight.shape[1]].float()


def _panels_of(start: int, stop: int) -> tuple[int, slice]:
    """Return the first panel with rows start … stop-1, and their slice relative to its beginning."""
    first = start // packing_layout.ROWS
    return first, slice(start - first * packing_layout.ROWS, stop - first * packing_layout.ROWS)


def _pick_panels(weight: PackedWeight, rows: Tensor) -> Tensor:
    whole = packing_layout.pick_rows(weight.tensors["codes"], rows).flatten(1)
    if weight.layout == Layout.PANELS4:
        whole = packing_layout.unpaired(_levels(weight, whole))
    return _scaled(weight, whole, packing_layout.pick_rows(weight.tensors["scales"], rows))


def _pick_panels16(weight: PackedWeight, rows: Tensor) -> Tensor:
    return packing_layout.pick_rows(weight.tensors["codes"], rows).flatten(1)[:, : weight.shape[1]]


@dataclass(frozen=True, slots=True)
class _Definition:
    """Definition of a layout: names of its tensors, decoding of rows start … stop-1, and look-up without host reads."""

    parts: tuple[str, ...]
    decode: Callable[[PackedWeight, int, int], Tensor]
    pick: Callable[[PackedWeight, Tensor], Tensor] | None = None


_DEFINITIONS: dict[Layout, _Definition] = {
    Layout.MAP4: _Definition(
        ("codes", "quant_map", "absmax", "nested_absmax", "nested_map", "nested_offset"), _decode_map4
    ),
    Layout.INT8_ROWS: _Definition(("codes", "scale"), _decode_int8),
    Layout.PANELS4: _Definition(("codes", "scales", "levels"), _decode_panels, _pick_panels),
    Layout.PANELS8: _Definition(("codes", "scales"), _decode_panels, _pick_panels),
    Layout.PANELS16: _Definition(("codes",), _decode_panels16, _pick_panels16),
}
