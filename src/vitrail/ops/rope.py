"""Rotary position embedding: frequencies, angles, rotation in halves.

Letters: K head width, L packed rows. Memory layout in halves: element i is paired with i + K/2.
Sources: RoFormer (arXiv 2104.09864), YaRN (arXiv 2309.00071), Pixtral 12B (arXiv 2410.07073) for two dimensions.
"""

import math

import torch
from torch import Tensor


def frequencies(width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Return float32 (K/2,): theta^(−2k/K) for k = 0 … K/2−1."""
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device=device).to(torch.float32) / width
    return 1.0 / (theta**exponents)


def yarn_frequencies(
    width: int,
    theta: float,
    *,
    factor: float,
    original_positions: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    device: torch.device | None = None,
) -> Tensor:
    """Compute rotary frequencies with YaRN (arXiv 2309.00071 §3.2).

    Args:
        width: K, of a head.
        theta: base of the frequencies.
        factor: by which slow frequencies are divided; fast ones are kept, with a linear ramp between.
        original_positions: context length before scaling.
        beta_fast, beta_slow: rotations over the original context at which the ramp begins and ends.
        truncate: round the ends of the ramp to whole pairs.
        device: of the result.

    Returns:
        float32 (K/2,).
    """

    def correction(rotations: float) -> float:
        return width * math.log(original_positions / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(beta_fast), correction(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # avoids division by zero in the ramp
    steps = torch.arange(width // 2, dtype=torch.float32, device=device)
    kept = 1 - ((steps - low) / (high - low)).clamp(0, 1)
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device=device).to(torch.float32) / width
    powers = theta**exponents
    return (1.0 / (factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Return the factor of cos and sin: the ratio of both scales, exactly 1 for this family (mscale = mscale_all_dim)."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """Return float32 (L, K/2): angle of each pair at int64 positions (L,)."""
    return positions.to(torch.float32)[:, None] * inv_freq[None, :]


def grid_angles(rows: Tensor, cols: Tensor, inv_freq: Tensor) -> Tensor:
    """Return float32 (L, K/2) for patches: even frequencies rotate by row, odd ones by column."""
    return torch.cat([angles(rows, inv_freq[0::2]), angles(cols, inv_freq[1::2])], dim=-1)


def cos_sin(angle: Tensor, dtype: torch.dtype, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return cos and sin (L, K) of both halves, computed in float32 and rounded once to `dtype`."""
    both = torch.cat([angle, angle], dim=-1)
    return (both.cos() * scale).to(dtype), (both.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (L, heads, K) by cos, sin (L, K)."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos[:, None, :] + turned * sin[:, None, :]


def query_temperature(positions: Tensor, beta: float, original_positions: int) -> Tensor:
    """Return float32 (L,): 1 + beta·ln(1 + ⌊position / original⌋), Ministral 3's scale of queries by position."""
    return 1.0 + beta * torch.log(1.0 + torch.floor(positions.to(torch.float32) / original_positions))
