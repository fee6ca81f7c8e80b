"""Rotation: cos, sin and temperature of a step's positions, shared by all layers. Arithmetic: ops/rope.py.

Letters: L packed rows · K head width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitrail.configs import MistralConfig
from vitrail.ops import rope

# A table of this many positions takes 64 MB in bfloat16; positions beyond it are computed.
_MOST = 1 << 17
_FEWEST = 1 << 10


class Rotation(NamedTuple):
    """The rotation of one step, shared by its layers: cos, sin (L, K) and the query's temperature (L,) or None."""

    cos: Tensor
    sin: Tensor
    temperature: Tensor | None


def rotation_of(config: MistralConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
    """Return the rotation at int64 positions (L,), in `dtype`; the temperature in float32."""
    inv_freq, factor = _frequencies(config, positions.device)
    cos, sin = rope.cos_sin(rope.angles(positions, inv_freq), dtype, factor)
    scaling = config.rope_scaling
    beta = None if scaling is None else scaling.get("llama_4_scaling_beta")
    if scaling is None or beta is None:
        return Rotation(cos, sin, None)
    original = int(scaling["original_max_position_embeddings"])
    return Rotation(cos, sin, rope.query_temperature(positions, float(beta), original))


class Rotations:
    """Rotations of one decoder; on a CPU looked up in a table of all positions so far. Copies begin without a table.

    Computing them takes a dozen small operations a step, two of them divided among threads by PyTorch: beside a busy
    process those wait longer than a layer takes.
    """

    def __init__(self) -> None:
        # The key and its table: one tuple, replaced whole, for threads that share a model.
        self._held: tuple[tuple[Any, ...], Rotation] | None = None

    def __reduce__(self) -> tuple[type["Rotations"], tuple[()]]:
        return Rotations, ()

    def at(self, config: MistralConfig, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the same as `rotation_of`, bit for bit."""
        if torch.compiler.is_compiling() or type(positions) is not Tensor or positions.device.type != "cpu":
            return rotation_of(config, positions, dtype)
        first, last = (int(x) for x in torch.aminmax(positions)) if len(positions) else (0, 0)
        if first < 0 or last >= _MOST:
            return rotation_of(config, positions, dtype)
        cos, sin, temperature = self._rows(config, last + 1, dtype)
        picked = None if temperature is None else temperature.index_select(0, positions)
        return Rotation(cos.index_select(0, positions), sin.index_select(0, positions), picked)

    def _rows(self, config: MistralConfig, count: int, dtype: torch.dtype) -> Rotation:
        """Return the table, of at least `count` positions."""
        scaling = None if config.rope_scaling is None else tuple(config.rope_scaling.items())
        key = (dtype, config.head_dim, config.rope_theta, config.max_position_embeddings, scaling)
        held = self._held
        if held is None or held[0] != key or len(held[1].cos) < count:
            rows = max(_FEWEST, 1 << (count - 1).bit_length())
            with torch.inference_mode(False), torch.no_grad():  # for steps with gradients too
                self._held = held = (key, rotation_of(config, torch.arange(rows, device="cpu"), dtype))
        return held[1]


def _frequencies(config: MistralConfig, device: torch.device) -> tuple[Tensor, float]:
    """Return the frequency of each pair, float32 (K/2,), and the factor of cos and sin."""
    scaling, width = config.rope_scaling, config.head_dim
    if scaling is None:
        return rope.frequencies(width, config.rope_theta, device), 1.0
    inv_freq = rope.yarn_frequencies(
        width,
        config.rope_theta,
        factor=float(scaling["factor"]),
        original_positions=int(
            scaling.get("original_max_position_embeddings") or config.max_position_embeddings
        ),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        truncate=bool(scaling.get("truncate", True)),
        device=device,
    )
    if scaling.get("attention_factor") is not None:
        return inv_freq, float(scaling["attention_factor"])
    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    return inv_freq, rope.yarn_attention_factor(float(scaling["factor"]), mscale, mscale_all_dim)
