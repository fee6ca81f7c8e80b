"""to_ids: token ids from tensors, arrays or lists as plain lists."""

from __future__ import annotations

from typing import Any

from vitrail.errors import InputError


def to_list(value: Any) -> Any:
    """Convert tensors and arrays, also inside lists, to plain lists of numbers.

    Raises:
        InputError: A tensor is sparse or on the meta device.
    """
    if getattr(value, "is_meta", False) or getattr(value, "is_sparse", False):
        raise InputError("ids in a tensor must have values; this one is sparse or on the meta device")
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_list(item) for item in value]
    return value


def to_ids(value: Any) -> list[int]:
    """Convert one id or one sequence of ids to a list.

    Raises:
        InputError: `value` is a batch, or an item is negative or no id.
    """
    ids = to_list(value)
    if isinstance(ids, int):
        ids = [ids]
    for position, item in enumerate(ids if isinstance(ids, list) else [ids]):
        if isinstance(item, list):
            raise InputError("expected one sequence of ids, got a batch of them; use batch_decode")
        if not isinstance(item, int) or isinstance(item, bool):
            raise InputError(f"expected ids, got {item!r} at position {position}")
        if item < 0:
            raise InputError(
                f"id {item} at position {position} is negative; replace it (labels use -100) first"
            )
    return list(ids)
