"""Hostile calls of every operator: whatever it is given, it answers or refuses, and reads and writes nothing beyond.

A valid call with one to three arguments made wild: shapes, strides, types, devices, values, indices, alignment, memory that
cannot be written. Under native/sanitize.py memory is watched; here the operators with kernels and without must agree on
what they take and on the shape and type of what they give. VITRAIL_FUZZ_EXAMPLES makes it longer.
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from tests.unit.test_operator_checks import valid
from vitrail.errors import VitrailError
from vitrail.ops.cpu import library
from vitrail.ops.weight import Layout, PackedWeight

EXAMPLES = int(os.environ.get("VITRAIL_FUZZ_EXAMPLES", "8"))
NAMES = sorted(valid())
KERNELS = library.available() or ("off",)
# What refuses: Vitrail, a table of rows that lacks one, and PyTorch: its dispatcher and its own operators.
REFUSED = (VitrailError, IndexError, RuntimeError, TypeError, NotImplementedError, ValueError, OverflowError)
DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.int16, torch.int32,
    torch.int64, torch.bool, torch.complex64,
)  # fmt: skip
NUMBERS = (-(2**63), -(2**40), -1, 0, 1, 2, 3, 7, 31, 33, 64, 127, 2**31 - 1, 2**31, 2**40, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, -1.0, 1e-45, 3e38, -3e38, 65504.0, 1e9)


def misaligned(x: Tensor, draw: Any) -> Tensor:
    """The same numbers at an odd address."""
    room = torch.empty(x.numel() * x.itemsize + 65, dtype=torch.uint8)
    flat = (
        torch.frombuffer(room.numpy(), dtype=x.dtype, count=x.numel(), offset=1) if x.numel() else x.flatten()
    )
    return flat.copy_(x.flatten()).view(x.shape)


def read_only(x: Tensor, draw: Any) -> Tensor:
    """The same numbers in a page that a write ends the process at."""
    if x.dtype == torch.bfloat16 or not x.numel():
        return x
    mapping = mmap.mmap(-1, x.numel() * x.itemsize)
    mapping.write(x.contiguous().numpy().tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.frombuffer(memoryview(mapping).toreadonly(), dtype=x.dtype).view(x.shape)


def resized(x: Tensor, draw: Any) -> Tensor:
    """One dimension shorter, longer, empty or twice as long; new numbers are zeros."""
    if not x.dim():
        return x[None]
    dim = draw(st.integers(0, x.dim() - 1))
    size = draw(st.sampled_from([0, 1, max(0, x.shape[dim] - 1), x.shape[dim] + 1, 2 * x.shape[dim], 97]))
    shape = [size if d == dim else n for d, n in enumerate(x.shape)]
    new = torch.zeros(shape, dtype=x.dtype)
    part = tuple(slice(0, min(a, b)) for a, b in zip(shape, x.shape, strict=True))
    new[part] = x[part]
    return new


def strided(x: Tensor, draw: Any) -> Tensor:
    """The same shape, another way to lie: transposed and back, every second, all one number, overlapping."""
    if not x.dim() or not x.numel():
        return x
    way = draw(st.sampled_from(["turned", "gaps", "expanded", "overlapping"]))
    if way == "turned":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if way == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    if way == "expanded":
        return x[:1].expand(x.shape)
    return x.contiguous().as_strided(x.shape, [1] * (x.dim() - 1) + [0])


def valued(x: Tensor, draw: Any) -> Tensor:
    """One number, or all, are wild."""
    new = x.clone()
    if not x.numel():
        return new
    flat = new.view(-1)
    part = draw(st.sampled_from([slice(0, 1), slice(-1, None), slice(None)]))
    if x.is_floating_point():
        flat[part] = draw(st.sampled_from(FLOATS))
    elif not x.is_complex() and x.dtype != torch.bool:
        info = torch.iinfo(x.dtype)
        flat[part] = draw(st.sampled_from([n for n in NUMBERS if info.min <= n <= info.max]))
    return new


def other_shape(x: Tensor, draw: Any) -> Tensor:
    return draw(st.sampled_from([x[None], x.flatten(), x[..., None], x.sum(), x[:0] if x.dim() else x]))  # type: ignore[no-any-return]


WILD: dict[str, Callable[[Tensor, Any], Any]] = {
    "resized": resized, "strided": strided, "valued": valued, "shape": other_shape, "misaligned": misaligned,
    "read only": read_only, "meta": lambda x, draw: x.to("meta"),
    "typed": lambda x, draw: x.to(draw(st.sampled_from(DTYPES))),
    "wanted": lambda x, draw: x.clone().requires_grad_() if x.is_floating_point() else x,
}  # fmt: skip


def wild(value: Any, draw: Any, written: bool) -> Any:
    """An argument made wild; `written`: the operator writes to it, so it stays where it can be written."""
    if isinstance(value, Tensor):
        ways = [way for way in WILD if not (written and way == "read only")]
        return WILD[draw(st.sampled_from(ways))](value, draw)
    if isinstance(value, PackedWeight):
        return wild_weight(value, draw)
    if isinstance(value, list):
        if not value or draw(st.booleans()):
            return draw(st.sampled_from([[], [*value, *value]]))
        return [wild(value[0], draw, written), *value[1:]]
    if isinstance(value, torch.dtype):
        return draw(st.sampled_from(DTYPES))
    if isinstance(value, str):
        return draw(st.sampled_from([layout.value for layout in Layout]))
    if isinstance(value, bool):
        return not value
    return draw(st.sampled_from(FLOATS if isinstance(value, float) else NUMBERS))


def wild_weight(weight: PackedWeight, draw: Any) -> PackedWeight:
    """One of its tensors, its shape, group, type or layout made wild."""
    what = draw(st.sampled_from(["tensor", "tensor", "shape", "group", "dtype", "layout"]))
    if what == "tensor":
        name = draw(st.sampled_from(sorted(weight.tensors)))
        made = wild(weight.tensors[name], draw, False)
        return weight.with_tensors({k: v for k, v in {**weight.tensors, name: made}.items() if v is not None})
    if what == "shape":
        numbers = st.sampled_from([*NUMBERS, *weight.shape])
        return replace(weight, shape=(draw(numbers), draw(numbers)))
    if what == "group":
        return replace(weight, group=draw(st.sampled_from(NUMBERS)))
    if what == "dtype":
        return replace(weight, dtype=draw(st.sampled_from(DTYPES[:4])))
    return replace(weight, layout=draw(st.sampled_from(list(Layout))))


def outcome(call: Callable[..., Any], arguments: list[Any]) -> list[tuple[torch.Size, torch.dtype]] | None:
    """Shape and type of what came; None: refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = call(*arguments)
        except REFUSED:
            return None
    tensors = [result] if isinstance(result, Tensor) else result if isinstance(result, (list, tuple)) else []
    return [(x.shape, x.dtype) for x in tensors if isinstance(x, Tensor)]


def copied(value: Any) -> Any:
    """What is written to, once for each call."""
    return (
        value.clone() if isinstance(value, Tensor) and not value.is_meta and value.is_contiguous() else value
    )


@pytest.mark.slow
@pytest.mark.skipif(not library.available(), reason="no kernels were built")
@pytest.mark.parametrize("isa", KERNELS)
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_hostile_call_is_answered_or_refused(name: str, isa: str, data: Any) -> None:
    call, arguments = valid()[name]
    mutable = ("keys", "values", "scales")
    for key in data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=3, unique=True)):
        optional = key in ("scales", "window") and data.draw(st.booleans())
        arguments[key] = None if optional else wild(arguments[key], data.draw, key in mutable)
    given_twice = [copied(value) if key in mutable else value for key, value in arguments.items()]
    with library.using(isa):
        got = outcome(call, list(arguments.values()))
    with library.using("off"):
        wanted = outcome(call, given_twice)
    if got is not None and wanted is not None:
        assert got == wanted
