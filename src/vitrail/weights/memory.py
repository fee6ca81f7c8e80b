"""Estimate load-time memory from file headers; raise OutOfMemory if it exceeds what is free."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from vitrail.errors import OutOfMemory
from vitrail.files.formatting import in_words
from vitrail.files.safetensors import TensorSpec
from vitrail.quant.config import Quantization
from vitrail.quant.formats.bitsandbytes import SMALLER
from vitrail.quant.policy import to_pack
from vitrail.weights.checkpoint import Checkpoint
from vitrail.weights.devices import Placement
from vitrail.weights.free_memory import free_memory
from vitrail.weights.plan import FLOATS, Plan

SWITCH = "VITRAIL_MEMORY_CHECK"  # "off" disables the check
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Form:
    """How weights are stored in memory: dtype of plain floats, and quantisation of matrices, if any."""

    dtype: torch.dtype
    quantization: Quantization | None = None


class Headers(Protocol):
    """The part of a checkpoint used for the estimate: dtypes and shapes."""

    def spec(self, name: str) -> TensorSpec: ...

    def copies(self, name: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Step:
    """Loading of one tensor or packed layer: permanent and temporary bytes."""

    name: str  # the model's tensor
    kept: int
    meanwhile: int = 0
    meanwhile_on_cpu: int = 0  # on the CPU, whatever the target device
    mapped: bool = False  # used in place in the mapped file: not counted as process memory


def kept_bytes(model: nn.Module, checkpoint: Headers, plan: Plan, form: Form) -> dict[str, int]:
    """Return the model's tensor names → bytes once loaded in `form`; 0 for a tied head."""
    return {step.name: step.kept for step in _steps(model, checkpoint, plan, form)}


def mapped_bytes(model: nn.Module, checkpoint: Headers, plan: Plan, form: Form, where: Placement) -> int:
    """Return how many of `kept_bytes` stay in mapped files, whose pages the system reads on demand and may drop."""
    steps = _steps(model, checkpoint, plan, form, where)
    return sum(step.kept for step in steps if step.mapped)


def peak_bytes(
    model: nn.Module, checkpoint: Headers, plan: Plan, form: Form, where: Placement
) -> dict[torch.device, int]:
    """Return device → peak bytes while loading: what is loaded plus temporary memory.

    Mapped files count as nothing, because the system reclaims their pages on demand.

    Args:
        model: on the meta device.
        checkpoint: its headers.
        plan: source of each tensor.
        form: dtype and quantisation in memory.
        where: device of each module.
    """
    held: dict[torch.device, int] = defaultdict(int)
    most: dict[torch.device, int] = defaultdict(int)
    for step in _steps(model, checkpoint, plan, form, where):
        device, kept = where.of(step.name), 0 if step.mapped else step.kept
        most[device] = max(most[device], held[device] + kept + step.meanwhile)
        held[device] += kept
        most[CPU] = max(most[CPU], held[CPU] + step.meanwhile_on_cpu)
    return dict(most)


def refuse_if_too_large(
    model: nn.Module, checkpoint: Checkpoint, plan: Plan, form: Form, where: Placement
) -> None:
    """Raise OutOfMemory, naming a form that would fit, if the weights need more than a device has free.

    Does nothing if the free memory is unknown, or with VITRAIL_MEMORY_CHECK=off in the environment.
    """
    if os.environ.get(SWITCH, "").strip().lower() in ("off", "0", "no", "false"):
        return
    need = peak_bytes(model, checkpoint, plan, form, where)
    free = {device: free_memory(device) for device in need}
    for device, room in free.items():
        if room is not None and need[device] > room:
            advice = _advice(
                lambda other: peak_bytes(model, checkpoint, plan, other, where), free, form, plan
            )
            raise OutOfMemory(
                f"the weights of {checkpoint.folder} need {in_words(need[device])} of memory on {device} as "
                f"{_called(form)}, and {in_words(room)} is free; {advice}. {SWITCH}=off in the environment loads them "
                "all the same."
            )


def _advice(
    need_of: Callable[[Form], Mapping[torch.device, int]],
    free: Mapping[torch.device, int | None],
    form: Form,
    plan: Plan,
) -> str:
    """Return the first form that fits, as advice for the message; or that none does."""
    smaller = ""
    for other, words in _smaller_forms(form, plan):
        need = need_of(other)
        smaller = f"as {_called(other)} they need {in_words(sum(need.values()))}"
        if all(room is None or need.get(device, 0) <= room for device, room in free.items()):
            return f"{smaller}: pass {words}"
    if smaller:
        return (
            f"even {smaller}: free some memory, write a copy whose weights stay in the file (vitrail quantize), or use a "
            "smaller model or a larger machine"
        )
    return "free some memory, or use a smaller model or a larger machine"


def _smaller_forms(form: Form, plan: Plan) -> Iterator[tuple[Form, str]]:
    """Yield smaller forms, the most accurate first, with from_pretrained's keywords for each."""
    half = torch.float16 if form.dtype == torch.float16 else torch.bfloat16
    if form.dtype.itemsize > 2:
        yield Form(half, form.quantization), f"dtype={half}"
    if plan.packed:  # already quantised in the files
        return
    titles = [config.title for config, _ in SMALLER]
    if form.quantization is not None and form.quantization.title not in titles:
        return
    for config, words in SMALLER[
        0 if form.quantization is None else titles.index(form.quantization.title) + 1 :
    ]:
        yield Form(half, config), f"dtype={half}, quantization_config={words}"


def _called(form: Form) -> str:
    dtype = str(form.dtype).removeprefix("torch.")
    if form.quantization is None or not form.quantization.is_quantizable():
        return dtype
    return f"{form.quantization.title} (the rest {dtype})"


def _steps(
    model: nn.Module, checkpoint: Headers, plan: Plan, form: Form, where: Placement | None = None
) -> Iterator[_Step]:
    """Yield the steps of load.py in order; mapped tensors are known only if the devices are."""

    def on_cpu_if(name: str) -> bool:
        return where is not None and where.of(name) == CPU

    for path, stored in plan.packed.items():
        yield _Step(f"{path}.weight", stored.weight.nbytes, mapped=path in plan.in_place and on_cpu_if(path))
    quantised = {}
    if form.quantization is not None:
        quantised = to_pack(model, form.quantization, plan.tied or ())
    for name, file_name in plan.plain.items():
        entry = checkpoint.spec(file_name)
        dtype = form.dtype if entry.dtype in FLOATS else entry.dtype
        count, size = math.prod(entry.shape), dtype.itemsize
        on_cpu = count * entry.dtype.itemsize if checkpoint.copies(file_name) else 0
        path, _, leaf = name.rpartition(".")
        if leaf == "weight" and path in quantised and form.quantization is not None:
            rows, columns = entry.shape
            choice = quantised[path]
            kept = choice.format.packed_bytes((rows, columns), choice.group)
            meanwhile = choice.format.working_bytes((rows, columns), choice.group, dtype)
            yield _Step(name, kept, meanwhile, on_cpu)
        else:
            mapped = on_cpu_if(name) and plan.stays_mapped(entry, dtype, CPU)
            yield _Step(name, count * size, 0, on_cpu, mapped)
