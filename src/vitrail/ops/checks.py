"""Argument checks shared by operators: sizes, offsets and layouts, before anything is read or written.

An operator's own check is beside its binding in ops/cpu/; ops/cpu/registry.py runs it before every call.
runs it before every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, InputError
from vitrail.ops.packing_layout import ROWS, panel_count
from vitrail.ops.weight import NESTED_GROUP, Layout, PackedWeight

INTEGERS = (torch.int32, torch.int64)
_Parts = dict[str, tuple[torch.Size, torch.dtype]]


def misfit(operator: str, expected: str, **came: Tensor | None) -> InputError:
    """Return the error for an operator's tensors that do not fit each other."""
    found = ", ".join(f"{name} {_described(tensor)}" for name, tensor in came.items())
    return InputError(f"{operator} expects {expected}; got {found}.")


def outside() -> InputError:
    """Return the error for offsets, lengths, blocks or slots out of range."""
    return InputError(
        "the offsets, lengths, blocks or slots of a step do not fit its tensors; "
        "steps and caches are made by Segments and KVCache."
    )


def _described(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def check_packed(weight: PackedWeight) -> None:
    """Raise CheckpointError unless a packed weight's tensors match its layout, shape and group."""
    wanted = _wanted_parts(weight.layout, weight.shape, weight.group, "nested_map" in weight.tensors)
    if wanted is None or len(wanted) != len(weight.tensors):
        raise _unfit(weight)
    for name, (shape, dtype) in wanted.items():
        part = weight.tensors.get(name)
        if part is None or part.dtype != dtype or (part.shape != shape and not _is_flat_alike(part, shape)):
            raise _unfit(weight)


def _is_flat_alike(part: Tensor, shape: torch.Size) -> bool:
    """Return whether a one-dimensional part has the right length in another shape: bitsandbytes keeps some as a column."""
    return len(shape) == 1 and part.numel() == shape.numel()


@lru_cache(maxsize=1024)  # few layouts and shapes per model, checked in every layer
def _wanted_parts(layout: Layout, shape: tuple[int, int], group: int, nested: bool) -> _Parts | None:
    """Return each part's shape and dtype; None if layout, shape and group do not go together."""
    (out, columns), size, panels = shape, shape[0] * shape[1], panel_count(shape[0])
    if min(out, columns) < 0 or group < 1:
        return None
    bits = {Layout.PANELS4: 4, Layout.PANELS8: 8}.get(layout)
    parts: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    if layout == Layout.INT8_ROWS:
        parts = {"codes": (shape, torch.int8), "scale": ((out,), torch.float32)}
    elif layout == Layout.PANELS16:
        parts = {"codes": ((panels, -(-columns // 2), ROWS, 2), torch.bfloat16)}
    elif layout == Layout.MAP4:
        groups = -(-size // group)
        parts = {"codes": ((-(-size // 2),), torch.uint8), "quant_map": ((16,), torch.float32)}
        parts["absmax"] = (groups,), torch.uint8 if nested else torch.float32
        if nested:
            lengths = {"nested_map": 256, "nested_absmax": -(-groups // NESTED_GROUP), "nested_offset": 1}
            parts.update({name: ((length,), torch.float32) for name, length in lengths.items()})
    elif bits and columns % group == 0 and columns % (32 // bits) == 0:
        code_type = torch.uint8 if bits == 4 else torch.int8
        parts = {"codes": ((panels, columns * bits // 32, 4 * ROWS), code_type)}
        parts["scales"] = (panels, columns // group, ROWS), torch.bfloat16
        if bits == 4:
            parts["levels"] = (16,), torch.int8
    return {name: (torch.Size(part), dtype) for name, (part, dtype) in parts.items()} or None


def _unfit(weight: PackedWeight) -> CheckpointError:
    (out, columns), found = weight.shape, weight.tensors.items()
    parts = ", ".join(f"{name} {_described(part)}" for name, part in found)
    return CheckpointError(
        f"a {weight.layout} matrix of {out} rows and {columns} columns in groups of {weight.group} has {parts}, which do "
        "not fit; load or quantise it again."
    )


def check_product(
    operator: str, x: Tensor, shapes: Sequence[tuple[int, ...]], biases: Sequence[Tensor | None]
) -> None:
    """Raise InputError unless x (rows, in) fits matrices (out_i, in), each with a bias (out_i,) or None."""
    fits = x.dim() == 2 and len(biases) == len(shapes) > 0
    if not fits or any(len(shape) != 2 or shape[1] != x.shape[1] for shape in shapes):
        raise misfit(operator, f"rows as wide as its matrices {[*shapes]} and one bias or None for each", x=x)
    for bias, shape in zip(biases, shapes, strict=True):
        if bias is not None and bias.shape != shape[:1]:
            raise misfit(operator, f"a bias for {shape[0]} outputs", bias=bias)
