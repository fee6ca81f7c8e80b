"""Table of kernels by memory layout and device type, used by the operators that multiply.

    register(Layout.MAP4, "cuda", products)  # takes the arguments of the layout's operator

CPU kernels are part of the operators themselves (ops/cpu/registry.py). Without an entry an operator uses its definition,
so a layout works without any kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitrail.ops.weight import Layout, PackedWeight

Kernel = Callable[[Tensor, Sequence[PackedWeight], Sequence[Tensor | None]], list[Tensor]]
_KERNELS: dict[tuple[Layout, str], Kernel] = {}


def register(layout: Layout, device: str, kernel: Kernel) -> None:
    """Register `kernel` to multiply weights in `layout` on a device type such as "cuda"."""
    _KERNELS[layout, device] = kernel


def kernel_for(layout: Layout, device: torch.device, definition: Kernel) -> Kernel:
    """Return the kernel for weights in `layout` on `device`, or the definition."""
    return _KERNELS.get((layout, device.type), definition)
