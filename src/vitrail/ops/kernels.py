"""Which kernel multiplies a layout on a type of device: one table, read by the operators. Where it says nothing, the
operator's definition is used, so a layout needs no kernel to work.

    register(Layout.MAP4, "cuda", products)  # the arguments are those of the layout's operator
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitrail.ops.weight import Layout

Kernel = Callable[..., list[Tensor]]
_KERNELS: dict[tuple[str, str], Kernel] = {}


def register(layout: Layout, device: str, kernel: Kernel) -> None:
    """Let `kernel` multiply weights in `layout` on devices of a type such as "cpu" or "cuda"."""
    _KERNELS[layout.value, device] = kernel


def kernel_for(layout: str, device: torch.device, definition: Kernel) -> Kernel:
    """The kernel for weights in `layout` on `device`, else the definition."""
    return _KERNELS.get((layout, device.type), definition)
