"""Products with NF4 and FP4 weights on an Nvidia GPU: by bitsandbytes where it is installed, else by decoding.

The one file of the package that may import bitsandbytes, and only when a 4-bit weight on a GPU is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vitrail.ops.cpu.dense import products_oracle
from vitrail.ops.cpu.registry import implement
from vitrail.ops.weight import NESTED_GROUP, PackedWeight


@lru_cache(maxsize=1)
def _library() -> Any:
    """bitsandbytes, or None where it is not installed."""
    try:
        import bitsandbytes
    except ImportError:
        return None
    return bitsandbytes


def _state(library: Any, weight: PackedWeight) -> Any:
    """bitsandbytes' description of a packed weight."""
    tensors, state = weight.tensors, library.functional.QuantState
    nested: dict[str, Any] = {}
    if "nested_map" in tensors:
        second = state(
            absmax=tensors["nested_absmax"],
            code=tensors["nested_map"],
            blocksize=NESTED_GROUP,
            dtype=torch.float32,
        )
        nested = {"offset": tensors["nested_offset"], "state2": second}
    return state(
        absmax=tensors["absmax"],
        shape=torch.Size(weight.shape),
        code=tensors["quant_map"],
        blocksize=weight.group,
        quant_type=weight.kind,
        dtype=weight.dtype,
        **nested,
    )


def products(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """The operator dense_products (ops/cpu/dense.py) on a GPU."""
    library = _library() if weights[0].kind in ("nf4", "fp4") else None
    if library is None:
        return products_oracle(x, weights, biases)
    return [
        library.matmul_4bit(
            x, weight.tensors["codes"][None], quant_state=_state(library, weight), bias=bias
        ).to(x.dtype)
        for weight, bias in zip(weights, biases, strict=True)
    ]


implement("dense_products", "cuda", products)
