"""Operator registration: schema, definition, CPU kernel, fake implementation and check from one Python signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.cpu import library
from vitrail.ops.weight import Layout, PackedWeight

_P = ParamSpec("_P")
_R = TypeVar("_R")
_NAMESPACE = "vitrail"
_SCHEMA: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", Sequence[Tensor]: "Tensor[]", Sequence[Tensor | None]: "Tensor?[]",
    int: "SymInt", int | None: "SymInt?", float: "float", bool: "bool", str: "str", torch.dtype: "ScalarType",
    list[Tensor]: "Tensor[]", tuple[Tensor, Tensor]: "(Tensor, Tensor)", type(None): "()",
}  # fmt: skip
# Schemas have no type for packed weights: each such parameter becomes these three.
_FLAT = ("str {}_forms", "Tensor[] {}_parts", "int[] {}_sizes")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class NotTaken(Exception):
    """Raised by a kernel before any side effect: the definition must handle these arguments."""


@dataclass(frozen=True)
class _Signature:
    """Mapping of a definition's parameters to its schema: `single` and `several` are indices of packed weights."""

    schema: str
    single: tuple[int, ...]
    several: tuple[int, ...]

    def flat(self, arguments: Sequence[Any]) -> list[Any]:
        """Convert the definition's arguments to the schema's."""
        found: list[Any] = []
        for place, argument in enumerate(arguments):
            if place in self.several:
                found.extend(flatten(argument))
            elif place in self.single:
                found.extend(flatten([argument]))
            else:
                found.append(argument)
        return found

    def unflat(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """Invert `flat`."""
        if not self.single and not self.several:
            return arguments
        found: list[Any] = []
        at, width = 0, len(_FLAT)
        while at < len(arguments):
            if len(found) in self.several:
                found.append(unflatten(*arguments[at : at + width]))
            elif len(found) in self.single:
                found.extend(unflatten(*arguments[at : at + width]))
            else:
                found.append(arguments[at])
                at += 1
                continue
            at += width
        return found


def flatten(weights: Sequence[PackedWeight]) -> tuple[str, list[Tensor], list[int]]:
    """Flatten packed weights: "layout part part …" of each; all parts; (out, in, group, dtype) of each."""
    forms = ",".join([" ".join([weight.layout.value, *weight.tensors]) for weight in weights])
    parts = [part for weight in weights for part in weight.tensors.values()]
    sizes = [
        size for weight in weights for size in (*weight.shape, weight.group, _DTYPES.index(weight.dtype))
    ]
    return forms, parts, sizes


def unflatten(forms: str, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[PackedWeight]:
    """Invert `flatten`; InputError for values that `flatten` does not produce."""
    weights, at = [], 0
    try:
        for layout, shape, group, names, dtype in _read_forms(forms, tuple(sizes)):
            end = at + len(names)
            tensors = dict(zip(names, parts[at:end], strict=True))
            weights.append(PackedWeight(layout, shape, group, tensors, dtype))
            at = end
    except (ValueError, IndexError) as error:
        raise InputError(
            f"packed weights of the form {forms!r:.200}, {len(parts)} parts and {len(sizes)} sizes do not go together; "
            "call the function of ops/cpu that takes PackedWeight."
        ) from error
    return weights


@lru_cache(maxsize=1024)  # few layouts and shapes per model, read in every layer
def _read_forms(
    forms: str, sizes: tuple[int, ...]
) -> list[tuple[Layout, tuple[int, int], int, list[str], torch.dtype]]:
    """Return (layout, shape, group, names of parts, dtype) of each weight."""
    found = []
    for form, numbers in zip(
        forms.split(",") if forms else (), zip(*[iter(sizes)] * 4, strict=True), strict=True
    ):
        (layout, *names), (out, columns, group, dtype) = form.split(" "), numbers
        found.append((Layout(layout), (out, columns), group, names, _DTYPES[dtype]))
    return found


def operator(
    name: str,
    definition: Callable[_P, _R],
    *,
    cpu: Callable[_P, _R],
    fake: Callable[..., Any],
    check: Callable[..., None],
    mutates: Sequence[str] = (),
) -> Callable[_P, _R]:
    """Register torch.ops.vitrail.NAME; return a function that calls it with the definition's arguments.

    Args:
        definition: PyTorch implementation with annotations, whose signature gives the schema; used without a kernel.
        cpu: kernel, called if there is a library; it raises NotTaken to defer to the definition.
        fake: returns the result's shape and dtype, for torch.compile and the meta device.
        check: raises for arguments that do not fit each other, before anything is read or written.
        mutates: parameters that are written to.
    """
    signature = _read_signature(definition, mutates)

    def kernel(*arguments: _P.args, **named: _P.kwargs) -> _R:
        if library.library() is not None:
            try:
                return cpu(*arguments, **named)
            except NotTaken:
                pass
        return definition(*arguments, **named)

    def checked(run: Callable[..., Any]) -> Callable[..., Any]:
        def on_flat(*flat: Any) -> Any:
            arguments = signature.unflat(flat)
            check(*arguments)
            return run(*arguments)

        return on_flat

    operators = _library()
    operators.define(f"{name}{signature.schema}")
    operators.impl(name, checked(kernel), "CPU")
    operators.impl(name, checked(definition), "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"{_NAMESPACE}::{name}", lambda *flat: fake(*signature.unflat(flat)), lib=operators
    )
    registered: Any = getattr(getattr(torch.ops, _NAMESPACE), name)
    if not signature.single and not signature.several:
        return registered  # type: ignore[no-any-return]

    def call(*arguments: _P.args, **_: _P.kwargs) -> _R:  # positional only, like schemas of packed weights
        result: _R = registered(*signature.flat(arguments))
        return result

    return call


def products_fake(x: Tensor, weights: Sequence[Tensor | PackedWeight], biases: Any) -> list[Tensor]:
    """Fake implementation of every operator that multiplies x (rows, in) by matrices (out_i, in)."""
    return [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]


def _read_signature(definition: Callable[..., Any], mutates: Sequence[str]) -> _Signature:
    hints = get_type_hints(definition)
    names = list(inspect.signature(definition).parameters)
    words: list[str] = []
    for name in names:
        if hints[name] in (PackedWeight, Sequence[PackedWeight]):
            words.extend(word.format(name) for word in _FLAT)
            continue
        kind = _SCHEMA[hints[name]]
        if name in mutates:
            kind = kind.replace("Tensor", f"Tensor(a{len(words)}!)")
        words.append(f"{kind} {name}")
    schema = f"({', '.join(words)}) -> {_SCHEMA[hints['return']]}"
    places = {
        kind: tuple(place for place, name in enumerate(names) if hints[name] == kind)
        for kind in (PackedWeight, Sequence[PackedWeight])
    }
    return _Signature(schema, places[PackedWeight], places[Sequence[PackedWeight]])


@lru_cache(maxsize=1)
def _library() -> Any:
    make: Any = torch.library.Library  # untyped in PyTorch
    return make(_NAMESPACE, "DEF")
