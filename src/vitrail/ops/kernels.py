"""Which kernel multiplies a layout on a type of device: one table, read by the operators that multiply.

    register(Layout.MAP4, "cuda", products)  # the arguments are those of the layout's operator

The CPU's kernels are given to the operators themselves (ops/cpu/registry.py). Where nothing is registered, the operator's
definition is used, so a layout needs no kernel to work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitrail.ops.weight import Layout, PackedWeight

Kernel = Callable[[Tensor, Sequence[PackedWeight], Sequence[Tensor | None]], list[Tensor]]
_KERNELS: dict[tuple[Layout, str], Kernel] = {}


def register(layout: Layout, device: str, kernel: Kernel) -> None:
    """Let `kernel` multiply weights in `layout` on devices of a type such as "cuda"."""
    _KERNELS[layout, device] = kernel


def kernel_for(layout: Layout, device: torch.device, definition: Kernel) -> Kernel:
    """The kernel for weights in `layout` on `device`, else the definition."""
    return _KERNELS.get((layout, device.type), definition)
