"""A matrix as it is stored: a plain tensor, or codes with scales. Holds decoding, not the files' layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from vitrail.ops import packing_layout

# bitsandbytes multiplies by this number instead of dividing by 127; the last bit of a weight depends on it.
INT8_STEP = 7.874015718698502e-3
# Scales of the first level that share one scale of the second.
NESTED_GROUP = 256
OWN_KINDS = ("q4", "q8", "bf16")
# What an integer of these formats is worth before its scale; powers of two, so that nothing is rounded by them.
OWN_STEPS = {"q4": 2.0**-6, "q8": 2.0**-7}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantised matrix, shape (out, in): its codes and scales exactly as a checkpoint stores them.

    kind     the format: "nf4", "fp4" (codes of 4 bits that look up a map) or "int8" (one scale per row) of
             bitsandbytes; "q4", "q8" or "bf16", our own, in panels of 16 rows (ops/packing_layout.py).
    group    neighbouring elements of the flattened matrix that share one scale (int8: a whole row); of q4 and
             q8 neighbouring columns of one row; of bf16 1.
    tensors  nf4/fp4: codes uint8 (ceil(out·in/2),), quant_map (16,), absmax float32 (groups,) — or, nested,
             absmax uint8 with nested_map (256,), nested_absmax (ceil(groups/256),) and nested_offset ().
             int8: codes int8 (out, in), scale float32 (out,).
             q8: codes int8 (P, in/4, 64), scales bfloat16 (P, in/group, 16); P = ceil(out/16).
             q4: codes uint8 (P, in/8, 64), scales as q8, levels int8 (16,) ascending within −63 … 63.
             bf16: codes bfloat16 (P, ceil(in/2), 16, 2).
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


def dequantize_rows(weight: PackedWeight, rows: Tensor) -> Tensor:
    """Single rows (n,) of the matrix in any order, (n, in) in the weight's own dtype: a table look-up.

    Of our own formats it reads nothing on the host, so that a step of decoding can be compiled.
    """
    if weight.kind in OWN_KINDS:
        return _pick_own(weight, rows).to(weight.dtype)
    table = [dequantize(weight, weight.dtype, slice(row, row + 1)) for row in rows.tolist()]
    if not table:
        return torch.empty(0, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return torch.cat(table)


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


def stored_integers(weight: PackedWeight, first: int, last: int) -> Tensor:
    """The int8 weights of panels first … last-1 of a q4 or q8 matrix, before their scales: (rows, in).

    Those of q4 are in the order of the bytes (packing_layout.paired), which is quicker to have than that of the columns.
    """
    rows = packing_layout.byte_rows(weight.tensors["codes"][first:last])
    return rows if weight.kind == "q8" else _levels(weight, rows)


def _levels(weight: PackedWeight, codes: Tensor) -> Tensor:
    """The levels of the two codes in each byte, side by side: (…, n) uint8 → (…, 2n) int8."""
    levels = weight.tensors["levels"]
    pairs = torch.stack([levels.repeat(16), levels.repeat_interleave(16)], 1).view(torch.int16).view(-1)
    return (
        pairs.index_select(0, codes.flatten().int())
        .view(torch.int8)
        .view(*codes.shape[:-1], 2 * codes.shape[-1])
    )


def _scaled(weight: PackedWeight, whole: Tensor, row_scales: Tensor) -> Tensor:
    """Integers (n, in) and scales (n, groups) as float32 values: one rounding."""
    values = whole.float() * OWN_STEPS[weight.kind]
    return (values.view(*row_scales.shape, weight.group) * row_scales.float()[:, :, None]).flatten(1)


def _decode_own(weight: PackedWeight, start: int, stop: int) -> Tensor:
    """Rows start … stop-1: the panels that hold them are decoded, no others."""
    first, last = start // packing_layout.ROWS, packing_layout.panel_count(stop)
    inside = slice(start - first * packing_layout.ROWS, stop - first * packing_layout.ROWS)
    if weight.kind == "bf16":
        return packing_layout.unpack_pairs(weight.tensors["codes"][first:last])[
            inside, : weight.shape[1]
        ].float()
    row_scales = packing_layout.unpack_scales(weight.tensors["scales"][first:last])[inside]
    whole = stored_integers(weight, first, last)[inside]
    return _scaled(weight, packing_layout.unpaired(whole) if weight.kind == "q4" else whole, row_scales)


def _pick_own(weight: PackedWeight, rows: Tensor) -> Tensor:
    codes = packing_layout.pick_rows(weight.tensors["codes"], rows)
    if weight.kind == "bf16":
        return codes.flatten(1)[:, : weight.shape[1]]
    whole = codes.flatten(1)
    if weight.kind == "q4":
        whole = packing_layout.unpaired(_levels(weight, whole))
    return _scaled(weight, whole, packing_layout.pick_rows(weight.tensors["scales"], rows))


_DECODERS: dict[str, Callable[[PackedWeight, int, int], Tensor]] = {
    "nf4": _decode_map4,
    "fp4": _decode_map4,
    "int8": _decode_int8,
    "q4": _decode_own,
    "q8": _decode_own,
    "bf16": _decode_own,
}
