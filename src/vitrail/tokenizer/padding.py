"""Lengths: padding and truncation of rows of ids, shared by both tokenizers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vitrail.arguments import short
from vitrail.errors import CheckpointError, InputError, UnsupportedError
from vitrail.images.batch_feature import BatchFeature
from vitrail.responses.ids import to_list

# Larger than any model's length; transformers writes int(1e30) for an unknown one.
NO_LENGTH = 10**20
VERY_LARGE = int(1e30)
Kind = Literal["longest", "max_length"]
_PADDINGS: dict[Any, Kind | None] = {
    True: "longest",
    "longest": "longest",
    "max_length": "max_length",
    False: None,
    None: None,
    "do_not_pad": None,
}
_TRUNCATIONS: dict[Any, bool] = {True: True, "longest_first": True, "only_first": True}
_TRUNCATIONS |= {False: False, None: False, "do_not_truncate": False}


LONGEST_ROW = 2**26  # ids, a thousand times a usual context


@dataclass(frozen=True, slots=True)
class Lengths:
    """Target lengths of rows of ids.

    Attributes:
        pad: padding strategy; None: no padding.
        length: max_length, or the model's; None: unknown.
        limit: length beyond which rows are cut; None: never.
        multiple: pad_to_multiple_of.
        side: padding side.
    """

    pad: Kind | None
    length: int | None
    limit: int | None
    multiple: int | None
    side: str


def check_side(side: str, name: str) -> str:
    """Return `side` if it is "left" or "right"; else raise InputError."""
    if side not in ("left", "right"):
        raise InputError(f"{name} is 'left' or 'right'; got {side!r}")
    return side


def whole_length(value: float) -> int:
    """Return a file's model_max_length as a whole number. Raises CheckpointError for others, inf and nan too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= VERY_LARGE:
        raise CheckpointError(
            f"model_max_length must be a number from 1 to {VERY_LARGE:g}; got {short(value)}."
        )
    return int(value)


def lengths(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    model_max_length: int,
    *,
    pad_to_multiple_of: int | None = None,
    side: str = "right",
) -> Lengths:
    """Resolve the length arguments of a tokenizer's call as transformers does.

    `max_length` alone truncates, with a warning; without it the model's own length counts, if known.

    Raises:
        InputError: values without meaning.
        UnsupportedError: truncation "only_second".
    """
    pad = _look_up(_PADDINGS, padding, "padding")
    if max_length is not None and pad is None and truncation is None:
        warnings.warn("max_length without truncation=True cuts longer texts", stacklevel=3)
        truncation = True
    if getattr(truncation, "value", truncation) == "only_second":
        raise UnsupportedError("truncation='only_second' is not supported; use True")
    cut = _look_up(_TRUNCATIONS, truncation, "truncation")
    if max_length is not None and (not isinstance(max_length, int) or max_length < 1):
        raise InputError(f"max_length is a whole number of at least 1; got {max_length!r}")
    known = model_max_length if model_max_length < NO_LENGTH else None
    length = known if max_length is None else max_length
    if pad == "max_length" and length is None:
        pad = None
    if cut and pad and length is not None and pad_to_multiple_of and length % pad_to_multiple_of:
        raise InputError(f"max_length {length} is no multiple of pad_to_multiple_of {pad_to_multiple_of}")
    return Lengths(pad, length, length if cut else None, pad_to_multiple_of, check_side(side, "padding_side"))


def pad_rows(
    columns: Mapping[str, Sequence[Sequence[int]]], plan: Lengths, pads: Mapping[str, int]
) -> dict[str, list[list[int]]]:
    """Pad the rows of every column in `pads` (name → pad value) to the length of `plan`; others stay as they are."""
    rows = {name: [list(row) for row in column] for name, column in columns.items()}
    if plan.pad is None:
        return rows
    target = max(map(len, rows["input_ids"]), default=0)
    if plan.pad == "max_length" and plan.length is not None:
        target = plan.length
    if plan.multiple:
        target = -(-target // plan.multiple) * plan.multiple
    if target > LONGEST_ROW:
        raise InputError(f"rows would be padded to {int(target):,} ids; at most {LONGEST_ROW:,} are made")
    for name, value in pads.items():
        for row in rows.get(name, ()):
            filler = [value] * (target - len(row))
            row[:] = filler + row if plan.side == "left" else row + filler
    return rows


def pad_encoded(
    encoded: Any,
    plan: Lengths,
    pads: Mapping[str, int],
    *,
    return_attention_mask: bool,
    return_tensors: Any = None,
) -> BatchFeature:
    """Pad earlier output of a tokenizer: one row, a dict of rows or a list of dicts.

    Tensors stay tensors, arrays arrays, lists lists, unless `return_tensors` is given.

    Raises:
        InputError: `encoded` has no input_ids, or its rows do not fit.
    """
    if isinstance(encoded, (list, tuple)):
        if not encoded or not all(isinstance(row, Mapping) for row in encoded):
            raise InputError(
                "pad expects what a tokenizer returned: a dict with 'input_ids', or a list of such"
            )
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        raise InputError("pad expects what a tokenizer returned: a dict with 'input_ids', or a list of such")
    if return_tensors is None:
        return_tensors = _kind(encoded["input_ids"])
    columns = {name: to_list(value) for name, value in encoded.items()}
    single = not columns["input_ids"] or not isinstance(columns["input_ids"][0], (list, tuple))
    if single:
        columns = {name: [value] for name, value in columns.items()}
    if return_attention_mask and "attention_mask" not in columns:
        columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
    padded: dict[str, Any] = pad_rows(columns, plan, pads)
    if single:
        padded = {name: rows[0] for name, rows in padded.items()}
    return BatchFeature(padded, return_tensors)


def _kind(value: Any) -> str | None:
    """Return "pt" for tensors, "np" for arrays, also inside a list; None for plain numbers."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    if not hasattr(first, "tolist"):
        return None
    return "pt" if hasattr(first, "detach") else "np"


def _look_up(table: Mapping[Any, Any], value: Any, name: str) -> Any:
    value = getattr(value, "value", value)
    try:
        return table[value]
    except (KeyError, TypeError) as error:
        raise InputError(f"{name}={value!r} is not one of {', '.join(map(repr, table))}") from error


def limit_of(plan: Lengths) -> int | None:
    """Return the limit for `fit_prompt`: max_length, less one for bos where rows are padded to it."""
    return None if plan.limit is None else plan.limit - (plan.pad == "max_length")
