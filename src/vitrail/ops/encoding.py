"""Quantising operators, floats to codes and scales. Kernels: ops/cpu/encode.py; definitions: ops/reference/encode.py."""

from vitrail.ops.cpu import library
from vitrail.ops.cpu.encode import encode_fit, encode_map4, encode_own, squared_error
from vitrail.ops.reference.encode import row_blocks

__all__ = ["encode_fit", "encode_map4", "encode_own", "has_kernels", "row_blocks", "squared_error"]


def has_kernels() -> bool:
    """Return whether packing on a CPU uses the kernels, which need no intermediates."""
    return library.library() is not None
