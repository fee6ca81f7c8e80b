"""How q4 and q8 lie in files: names, types and shapes of their tensors, their order. Decodes and quantises nothing.

Panels of 16 output rows, whatever the machine: `<module>.weight.codes`, `.weight.scales` and, for q4, `.weight.levels`.
Every codes tensor takes a multiple of 64 bytes, so with all codes first in a file whose data begins at a multiple of 64
each begins at one, and can be used where it is mapped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files.safetensors_writer import Spec
from vitrail.ops import packing_layout
from vitrail.ops.weight import PackedWeight
from vitrail.quant.own_config import GROUPS

ALIGNMENT = 64  # bytes: of the data section and of every codes tensor
PART_ALIGNMENT = 16  # bytes: of scales, levels and large plain tensors
LEVELS = 16
LARGEST_LEVEL = 63  # so that sums of products fit the kernels' 16-bit lanes
OWN_KINDS = ("q4", "q8")  # as saved; a matrix in 16 bits is saved as a plain one
_CODES = {torch.int8: "q8", torch.uint8: "q4"}
_SAVED = {"q4": ("codes", "scales", "levels"), "q8": ("codes", "scales")}
KEYS = ("weight.codes", "weight.scales", "weight.levels")
"""What lies beside a weight of these formats: keys after the module's name."""


def fitting_group(columns: int, wanted: int) -> int | None:
    """The largest allowed group of at most `wanted` that divides a row of `columns` weights; None: there is none."""
    return max((group for group in GROUPS if group <= wanted and columns % group == 0), default=None)


def specs(kind: str, shape: tuple[int, int], group: int) -> dict[str, Spec]:
    """Part → type and shape of a matrix (out, in) in `kind`, as it is saved."""
    rows, columns = shape
    count = packing_layout.panel_count(rows)
    steps, codes = (columns // 4, torch.int8) if kind == "q8" else (columns // 8, torch.uint8)
    found: dict[str, Spec] = {
        "weight.codes": (codes, (count, steps, ALIGNMENT)),
        "weight.scales": (torch.bfloat16, (count, columns // group, packing_layout.ROWS)),
    }
    if kind == "q4":
        found["weight.levels"] = (torch.int8, (LEVELS,))
    return found


def to_state(weight: PackedWeight) -> dict[str, Tensor]:
    """What a file holds for a packed weight: the part of the key after the module's name → tensor."""
    return {f"weight.{part}": weight.tensors[part] for part in _SAVED[weight.kind]}


def from_state(
    name: str,
    parts: Mapping[str, Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
    group: int | None = None,
) -> PackedWeight:
    """The packed weight (out, in) = `shape` of module `name` from what a file holds for it; nothing is copied.

    The kind is told by the codes' type, the group by the number of scales; `group`: which it must be, where that is
    known. `dtype`: what decoded values are rounded to.
    CheckpointError names the tensor that is missing, of another type or shape, or out of range.
    """
    if "weight.codes" not in parts:
        raise CheckpointError(f"{name}.weight.codes is missing beside {', '.join(parts)}.")
    codes = parts["weight.codes"]
    kind = _CODES.get(codes.dtype)
    if kind is None:
        raise CheckpointError(
            f"{name}.weight.codes is {codes.dtype}, which is no format of Vitrail's; int8 (q8) or uint8 (q4) was expected."
        )
    group = _group(name, parts, shape[1], GROUPS if group is None else (group,))
    wanted = specs(kind, shape, group)
    for key, (type_, form) in wanted.items():
        if key not in parts:
            raise CheckpointError(f"{name}.{key} is missing beside the codes of {kind}.")
        found = parts[key]
        if found.dtype != type_ or tuple(found.shape) != form:
            raise CheckpointError(
                f"{name}.{key} is {found.dtype} {tuple(found.shape)} in the files; a matrix of {shape} in {kind} has "
                f"{type_} {form}"
            )
    more = sorted(f"{name}.{key}" for key in parts if key not in wanted)
    if more:
        raise CheckpointError(f"{', '.join(more)} beside the codes of {kind} is unexpected.")
    if kind == "q4":
        _check_levels(name, parts["weight.levels"])
    tensors = {key.removeprefix("weight."): parts[key] for key in wanted}
    return PackedWeight(kind, shape, group, tensors, dtype)


def is_aligned(weight: PackedWeight) -> bool:
    """Whether its tensors begin where kernels read them as they are; files written by others may have them elsewhere."""
    wanted = {name: ALIGNMENT if name == "codes" else PART_ALIGNMENT for name in weight.tensors}
    return all(weight.tensors[name].data_ptr() % bytes_ == 0 for name, bytes_ in wanted.items())


def _group(name: str, parts: Mapping[str, Tensor], columns: int, allowed: tuple[int, ...]) -> int:
    if "weight.scales" not in parts:
        raise CheckpointError(f"{name}.weight.scales is missing beside the codes.")
    scales = parts["weight.scales"]
    count = scales.shape[1] if scales.dim() == 3 else 0
    group = columns // count if count else 0
    if group not in allowed or group * count != columns:
        raise CheckpointError(
            f"{name}.weight.scales has the shape {tuple(scales.shape)}: rows of {columns} weights in groups of "
            f"{' or '.join(map(str, allowed))} have another number of scales"
        )
    return group


def _check_levels(name: str, levels: Tensor) -> None:
    wide = levels.short()
    if int(wide.abs().max()) > LARGEST_LEVEL or bool((wide.diff() < 0).any()):
        raise CheckpointError(
            f"{name}.weight.levels must ascend from -{LARGEST_LEVEL} at least to {LARGEST_LEVEL} at most, but are "
            f"{levels.tolist()}"
        )


def file_order(tensors: Mapping[str, Spec]) -> list[str]:
    """The names in the order of a file: codes, then scales, then the rest, each where its type needs it to begin."""

    def rank(name: str) -> tuple[int, bool, int, str]:
        dtype, shape = tensors[name]
        part = 0 if name.endswith(".weight.codes") else 1 if name.endswith(".weight.scales") else 2
        odd = math.prod(shape) * dtype.itemsize % ALIGNMENT != 0
        return part, odd, -dtype.itemsize, name

    return sorted(tensors, key=rank)
