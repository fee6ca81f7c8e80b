"""bitsandbytes' quantisers and the maps of NF4 and FP4, equal to bitsandbytes 0.50.2 byte for byte.

4-bit codes are computed in ops/reference/encode.py, decoding is in ops/weight.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitrail.ops import memory
from vitrail.ops.encoding import encode_map4
from vitrail.ops.weight import NESTED_GROUP, Layout, PackedWeight

GROUP = 64  # bitsandbytes' default on CPUs and Nvidia GPUs
INT8_CHUNK = 1 << 20  # elements converted to int8 at once: bounds the memory of intermediates

# Quantiles of the normal distribution (Dettmers et al., QLoRA, 2023, appendix E).
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_FP4_HALF = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)  # divided by 12; codes 8 … 15 are their negatives


def quant_map(kind: str) -> Tensor:
    """Return the float32 values (16,) of the 4-bit codes of "nf4" or "fp4"."""
    if kind == "nf4":
        return torch.tensor(_NF4)
    half = torch.tensor(_FP4_HALF)
    return torch.cat([half, 0.0 - half]) / 12.0


def nested_map() -> Tensor:
    """Return the float32 values (256,) of the second level's 8-bit codes: signed, exponents 10⁻⁶ … 10⁰.

    Exponent i has 2^i linear steps of either sign (Dettmers, 8-Bit Approximations, 2015).
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _edges(2**exponent + 1)
        steps = (edges[:-1] + edges[1:]) / 2.0
        values += (10.0 ** (exponent - 6) * steps).tolist()
        values += (-(10.0 ** (exponent - 6)) * steps).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


def _edges(count: int) -> Tensor:
    """Return linspace(0.1, 1, count) in float32 with one rounding per entry, on every processor.

    PyTorch's does so with AVX2 and AVX-512, as in bitsandbytes' files; without, it rounds twice, which gives other maps.
    """
    first, places = torch.tensor(0.1), torch.arange(count, dtype=torch.float64)
    step = ((1 - first) / (count - 1)).double()
    rising, falling = first.double() + step * places, 1 - step * (count - 1 - places)
    return torch.where(places < count // 2, rising, falling).float()


def quantize_4bit(weight: Tensor, kind: str, *, nested: bool = False, group: int = GROUP) -> PackedWeight:
    """Quantise a float matrix (out, in) to 4 bits. Decoded values are rounded to the matrix's dtype.

    Args:
        weight: (out, in).
        kind: "nf4" or "fp4".
        nested: quantise the scales too.
        group: adjacent elements of the flattened matrix that share a scale.
    """
    flat = weight.detach().contiguous().view(-1)
    values = quant_map(kind).to(flat.device)
    codes, absmax = encode_map4(flat, values, group)
    tensors = {"codes": codes, "quant_map": values}
    tensors |= _nest(absmax) if nested else {"absmax": absmax}
    return PackedWeight(Layout.MAP4, matrix_shape(weight), group, tensors, weight.dtype)


def quantize_int8(weight: Tensor) -> PackedWeight:
    """Quantise a float matrix (out, in) to int8 with one scale per row, the row's largest magnitude in float16."""
    rows, columns = matrix_shape(weight)
    codes = memory.empty((rows, columns), torch.int8, weight.device)
    scale = torch.empty(rows, dtype=torch.float32, device=weight.device)
    together = max(1, INT8_CHUNK // max(1, columns))
    for first in range(0, rows, together):
        part = slice(first, first + together)
        half = weight[part].detach().to(torch.float16)
        scale[part] = half.abs().amax(1)
        steps = half * (127.0 / scale[part])[:, None]
        codes[part] = torch.round(steps.nan_to_num_(0.0))  # 0 · ∞ in a row of zeros
    return PackedWeight(
        Layout.INT8_ROWS, (rows, columns), columns, {"codes": codes, "scale": scale}, weight.dtype
    )


def matrix_shape(weight: Tensor) -> tuple[int, int]:
    """Return the two dimensions of a matrix."""
    rows, columns = weight.shape
    return rows, columns


def _nest(absmax: Tensor) -> dict[str, Tensor]:
    """Quantise scales to 8-bit codes in groups of 256 around their mean."""
    offset = absmax.mean()
    centred = absmax - offset
    padded = torch.nn.functional.pad(centred, (0, -centred.numel() % NESTED_GROUP)).view(-1, NESTED_GROUP)
    outer = padded.abs().amax(1)
    # 0 · ∞ if all scales are equal: bitsandbytes writes code 0, and any code decodes to the mean.
    scaled = (padded * (1.0 / outer)[:, None]).nan_to_num(-1.0).clamp(-1, 1)
    # bitsandbytes' CPU kernel rounds to 65536 steps first, then looks up the nearest entry.
    table = nested_map().to(absmax.device)
    steps = torch.floor((scaled + 1.0) * 32767.5 + 0.5) / 32767.5 - 1.0
    codes = torch.bucketize(steps, (table[:-1] + table[1:]) / 2).to(torch.uint8)
    return {
        "absmax": codes.view(-1)[: absmax.numel()].clone(),
        "nested_absmax": outer,
        "nested_map": table,
        "nested_offset": offset,
    }
