"""How many bytes a quantised matrix takes, and how many are at work while it is made. Quantises nothing."""

from __future__ import annotations

import math

import torch

from vitrail.ops.weight import NESTED_GROUP
from vitrail.quant.bitsandbytes import GROUP
from vitrail.quant.config import BitsAndBytesConfig, Quantization
from vitrail.quant.own_layout import specs
from vitrail.quant.policy import Choice

_MAP = 16 * 4  # float32 values of the 4-bit codes
_NESTED_MAP = 256 * 4
_OWN_WORK = 30_000_000  # intermediates of one chunk, and of fitting levels, of own.quantize_own
_CHUNK_WORK = 40_000_000  # intermediates of one chunk of ops/encode.encode_map4 or bitsandbytes.quantize_int8


def chosen_bytes(rows: int, columns: int, choice: Choice, config: Quantization) -> int:
    """What `pack.pack` makes of a matrix (rows, columns)."""
    if isinstance(config, BitsAndBytesConfig):
        return packed_bytes(rows, columns, config)
    found = specs(choice.kind, (rows, columns), choice.group).values()
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in found)


def chosen_work(rows: int, columns: int, dtype: torch.dtype, choice: Choice, config: Quantization) -> int:
    """What is at work beside the result of `pack.pack` for a matrix whose values are asked for in `dtype`."""
    if isinstance(config, BitsAndBytesConfig):
        return packing_bytes(rows, columns, dtype, config)
    return min(_OWN_WORK, rows * columns * 100)


def packed_bytes(rows: int, columns: int, config: BitsAndBytesConfig) -> int:
    """What `replace.quantize` makes of a matrix (rows, columns): codes, scales and maps."""
    count = rows * columns
    if config.load_in_8bit:
        return count + 4 * rows
    groups = -(-count // GROUP)
    codes = (count + 1) // 2 + _MAP
    if not config.bnb_4bit_use_double_quant:
        return codes + 4 * groups
    return codes + groups + 4 * -(-groups // NESTED_GROUP) + _NESTED_MAP + 4


def packing_bytes(rows: int, columns: int, dtype: torch.dtype, config: BitsAndBytesConfig) -> int:
    """What is at work beside the result: the matrix itself, in `dtype`, and intermediates."""
    count = rows * columns
    if config.load_in_8bit:  # a chunk: in float16, its magnitudes, and three times in float32
        return count * dtype.itemsize + min(_CHUNK_WORK, count * 16)
    return count * dtype.itemsize + packed_bytes(rows, columns, config) + min(_CHUNK_WORK, count * 40)
