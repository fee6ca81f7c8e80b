"""Operators from floats to codes and scales, for every device. Kernels: ops/cpu/encode.py; definitions: ops/reference."""

from vitrail.ops.cpu.encode import encode_fit, encode_map4, encode_own, squared_error
from vitrail.ops.reference.encode import row_blocks

__all__ = ["encode_fit", "encode_map4", "encode_own", "row_blocks", "squared_error"]
