"""Initial weights for training the embedded model: random, with tower heads that attend to neighbouring patches.

A transformer initialised with plain noise must first learn that neighbouring patches matter, which costs more images
than two cores can draw in an hour. So the convolution is initialised to a cosine transform of brightness, and the
tower's heads to attention on fixed neighbours (compare d'Ascoli et al. 2021, ConViT, and Trockman and Kolter 2023,
mimetic initialisation). All weights stay trainable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0), (0, -2), (0, 2), (0, 0), (-1, 1))
_LUMINANCE = (0.299, 0.587, 0.114)
_SHARPNESS = 4.0  # margin of a head's score for its own neighbour: the softmax exponent at distance zero


@torch.no_grad()
def fill_normal(model: nn.Module) -> None:
    """Fill every matrix with normal noise scaled by its fan-in; outputs of residual branches start smaller."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            nn.init.ones_(parameter)
            continue
        ends_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
        nn.init.normal_(parameter, std=(0.15 if ends_branch else 0.5) / math.sqrt(parameter[0].numel()))


@torch.no_grad()
def patch_filters(weight: Tensor) -> None:
    """Fill a patch convolution (D, 3, P, P) with random mixtures of a cosine transform of brightness.

    High frequencies are amplified and the mean is attenuated: in print, the mean hides what they carry.
    """
    width, _, side, _ = weight.shape
    place = torch.arange(side)
    basis = torch.cos(math.pi * (place[None] + 0.5) * place[:, None] / side)
    basis = basis / basis.norm(dim=1, keepdim=True)
    frequency = place[:, None] + place[None, :]
    gain = torch.where(frequency == 0, 0.15, 0.6 + 0.25 * frequency.clamp(max=6))
    mixed = torch.randn(width, side, side) * gain / side
    planes = torch.einsum("dij,iy,jx->dyx", mixed, basis, basis)
    weight.copy_(planes[:, None] * torch.tensor(_LUMINANCE)[None, :, None, None])
    weight.add_(torch.randn_like(weight) * 0.02 / side)


@torch.no_grad()
def neighbour_heads(layers: Sequence[nn.Module], heads: int, theta: float) -> None:
    """Initialise the heads of a Pixtral tower so that each attends to a fixed neighbour.

    The first block's MLP writes a near-constant along one direction of the residual stream (z² summed over random
    directions; there are no biases for it). From the second block on, queries and keys read that constant, and the rotary
    embedding turns it into "the patch at this offset".
    """
    width = _matrix(layers[0], "attention.q_proj").shape[1]
    direction = torch.randn(width)
    direction /= direction.norm()
    _constant(layers[0], direction)
    size = width // heads
    inv_freq = theta ** (-torch.arange(0, size, 2) / size)
    for layer in layers[1:]:
        query, key = _matrix(layer, "attention.q_proj"), _matrix(layer, "attention.k_proj")
        for head in range(heads):
            row, column = _NEIGHBOURS[head % len(_NEIGHBOURS)]
            angle = torch.empty(size // 2)
            # order of ops/rope.py: even frequencies for rows, then odd ones for columns
            angle[: size // 4] = inv_freq[::2] * row
            angle[size // 4 :] = inv_freq[1::2] * column
            # the query at the origin is in phase with the key at (row, column)
            ones = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
            turned = torch.cat([angle.cos(), -angle.sin()])
            amount = math.sqrt(_SHARPNESS * math.sqrt(size) / (size // 2) * 4)
            rows = slice(head * size, (head + 1) * size)
            query[rows] = query[rows] * 0.5 + amount * ones[:, None] * direction[None] / math.sqrt(width) * 2
            key[rows] = key[rows] * 0.5 + amount * turned[:, None] * direction[None] / math.sqrt(width) * 2


def _constant(layer: nn.Module, direction: Tensor) -> None:
    """Write about sqrt(width)/2 along `direction` for every patch: silu(z)·z + silu(−z)·(−z) = z²."""
    gate, up = _matrix(layer, "feed_forward.gate_proj"), _matrix(layer, "feed_forward.up_proj")
    down = _matrix(layer, "feed_forward.down_proj")
    width = gate.shape[1]
    count = 32
    probes = torch.randn(count, width) / math.sqrt(width)  # z has unit variance on a normalised row
    for sign, rows in ((1.0, slice(0, count)), (-1.0, slice(count, 2 * count))):
        gate[rows] = sign * probes
        up[rows] = sign * probes
        down[:, rows] = direction[:, None] * math.sqrt(width) / 2 / count


def _matrix(layer: nn.Module, name: str) -> Tensor:
    weight = layer.get_submodule(name).weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} has no weight matrix.")
    return weight
