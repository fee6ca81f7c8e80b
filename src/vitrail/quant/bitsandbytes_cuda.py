"""Products with bitsandbytes' 4-bit maps on an Nvidia GPU: by bitsandbytes if installed, else by decoding.

The only file that may import bitsandbytes, and only when a 4-bit weight on a GPU is used.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vitrail.ops.kernels import register
from vitrail.ops.linear import decoded_products
from vitrail.ops.weight import NESTED_GROUP, Layout, PackedWeight
from vitrail.quant.bitsandbytes_codes import quant_map
from vitrail.quant.formats.bitsandbytes import FP4, NF4


@lru_cache(maxsize=1)
def _library() -> Any:
    """Return the bitsandbytes module, or None if it is not installed."""
    try:
        import bitsandbytes
    except ImportError:
        return None
    return bitsandbytes


def map_name(values: Tensor) -> str | None:
    """Return which of bitsandbytes' maps a quant_map is, or None. Cached, because it synchronises with the GPU."""
    if values not in _MAP_NAMES:
        stored = values.cpu()
        names = (NF4.name, FP4.name)
        _MAP_NAMES[values] = next((name for name in names if torch.allclose(stored, quant_map(name))), None)
    return _MAP_NAMES[values]


_MAP_NAMES: MutableMapping[Tensor, str | None] = WeakIdKeyDictionary()


def _state(library: Any, weight: PackedWeight, name: str) -> Any:
    """Return bitsandbytes' QuantState of a packed weight with the map `name`."""
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
        quant_type=name,
        dtype=weight.dtype,
        **nested,
    )


def products(x: Tensor, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """Run the operator dense_products (ops/linear.py) for MAP4 on a GPU."""
    library = _library()
    names = [] if library is None else [map_name(weight.tensors["quant_map"]) for weight in weights]
    if library is None or None in names:
        return decoded_products(x, weights, biases)
    return [
        library.matmul_4bit(
            x, weight.tensors["codes"][None], quant_state=_state(library, weight, str(name)), bias=bias
        ).to(x.dtype)
        for weight, name, bias in zip(weights, names, biases, strict=True)
    ]


register(Layout.MAP4, "cuda", products)
