"""What operators refuse before they read or write: tensors that are not what sizes, offsets and kinds say they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.errors import CheckpointError, InputError
from vitrail.ops.panels import ROWS, panel_count
from vitrail.ops.weight import NESTED_GROUP, PackedWeight

INTEGERS = (torch.int32, torch.int64)
_Parts = dict[str, tuple[tuple[int, ...], torch.dtype]]
_NESTED = ("nested_map", "nested_absmax", "nested_offset")


def misfit(operator: str, expected: str, **came: Tensor | None) -> InputError:
    """The error for an operator's tensors that do not fit each other."""
    found = ", ".join(f"{name} {_described(tensor)}" for name, tensor in came.items())
    return InputError(f"{operator} expects {expected}; got {found}.")


def outside() -> InputError:
    """The error for offsets, lengths, blocks or slots that point outside."""
    return InputError(
        "the offsets, lengths, blocks or slots of a step do not fit its tensors; "
        "steps and caches are made by Segments and KVCache."
    )


def _described(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def check_packed(weight: PackedWeight) -> None:
    """Raise CheckpointError unless a packed weight's tensors are what its kind, shape and group say."""
    parts, group = weight.tensors, weight.group
    if min(*weight.shape, group - 1) < 0 or not {"codes"} <= set(parts):
        raise _unfit(weight)
    wanted = _wanted_parts(weight)
    if wanted is None or set(wanted) != set(parts):
        raise _unfit(weight)
    flat = weight.kind in ("nf4", "fp4", "int8")  # files of bitsandbytes keep some of these as a column
    for name, (shape, dtype) in wanted.items():
        part = parts[name]
        size = 1
        for length in shape:
            size *= length
        if part.dtype != dtype or (part.numel() != size if flat else part.shape != shape):
            raise _unfit(weight)


def _wanted_parts(weight: PackedWeight) -> _Parts | None:
    """Each part's shape and dtype; None where shape and group do not go together."""
    kind, (out, columns), group = weight.kind, weight.shape, weight.group
    panels = panel_count(out)
    if kind == "int8":
        return {"codes": ((out, columns), torch.int8), "scale": ((out,), torch.float32)}
    if kind == "bf16":
        return {"codes": ((panels, -(-columns // 2), ROWS, 2), torch.bfloat16)}
    if kind in ("nf4", "fp4"):
        groups = -(-out * columns // group)
        parts: _Parts = {
            "codes": ((-(-out * columns // 2),), torch.uint8),
            "quant_map": ((16,), torch.float32),
        }
        if not any(name in weight.tensors for name in _NESTED):
            return {**parts, "absmax": ((groups,), torch.float32)}
        sizes = (256, -(-groups // NESTED_GROUP), 1)
        nested = {name: ((size,), torch.float32) for name, size in zip(_NESTED, sizes, strict=True)}
        return {**parts, "absmax": ((groups,), torch.uint8), **nested}
    bits = {"q4": 4, "q8": 8}.get(kind)
    if bits is None or columns % group or columns % (32 // bits):
        return None
    codes = (panels, columns * bits // 32, 4 * ROWS), torch.uint8 if bits == 4 else torch.int8
    own: _Parts = {"codes": codes, "scales": ((panels, columns // group, ROWS), torch.bfloat16)}
    return own if bits == 8 else {**own, "levels": ((16,), torch.int8)}


def _unfit(weight: PackedWeight) -> CheckpointError:
    (out, columns), found = weight.shape, weight.tensors.items()
    parts = ", ".join(f"{name} {_described(part)}" for name, part in found)
    return CheckpointError(
        f"a {weight.kind} matrix of {out} rows and {columns} columns in groups of {weight.group} has {parts}, which do "
        "not fit; load or quantise it again."
    )


def check_product(
    operator: str, x: Tensor, shapes: Sequence[tuple[int, ...]], biases: Sequence[Tensor | None]
) -> None:
    """Raise InputError unless x (rows, in) goes through matrices (out_i, in), each with a bias (out_i,) or None."""
    fits = x.dim() == 2 and len(biases) == len(shapes) > 0
    if not fits or any(len(shape) != 2 or shape[1] != x.shape[1] for shape in shapes):
        raise misfit(operator, f"rows as wide as its matrices {[*shapes]} and one bias or None for each", x=x)
    for bias, shape in zip(biases, shapes, strict=True):
        if bias is not None and bias.shape != shape[:1]:
            raise misfit(operator, f"a bias for {shape[0]} outputs", bias=bias)
