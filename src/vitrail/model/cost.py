"""Cost model: least bytes read, operations and cache bytes of a forward pass, counted from the model.

Letters: H query heads · G key/value heads · D head width.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.configs.text import MistralConfig
from vitrail.kv.geometry import KVGeometry


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes, each read once, and flop: multiplications and additions."""

    bytes: int
    flop: int


def kv_bytes(config: MistralConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one cached position: keys and values of all layers."""
    return KVGeometry.of(config).position_bytes(dtype)


def decoder_flop(model: Any, rows: int, pairs: float, logits: int = 1) -> int:
    """Return the operations of the decoder.

    Args:
        model: a model with a head.
        rows: new positions.
        pairs: (query, key) pairs of attention.
        logits: positions with logits.
    """
    text = model.text_config
    width = text.num_attention_heads * text.head_dim * text.num_hidden_layers
    products = rows * matrix_size(model.decoder.layers) + logits * matrix_size(model.lm_head)
    return 2 * products + int(4 * width * pairs)


def decode_cost(model: Any, rows: int, context: int) -> Cost:
    """Return the cost of a decode step of `rows` sequences with `context` cached positions each."""
    cached = rows * context * kv_bytes(model.text_config, model.dtype)
    return Cost(_decoder_bytes(model) + cached, decoder_flop(model, rows, rows * (context + 1), rows))


def prefill_cost(model: Any, rows: int) -> Cost:
    """Return the cost of a prompt of `rows` positions; logits of the last one only."""
    return Cost(_decoder_bytes(model), decoder_flop(model, rows, rows * (rows + 1) // 2))


def vision_cost(model: Any, grids: list[tuple[int, int]]) -> Cost:
    """Return the cost of tower and projector for images of (rows, columns) patches."""
    tower, projector = tower_cost(model, grids), model.multi_modal_projector
    tokens = sum(projector.tokens(grid) for grid in grids)
    return Cost(tower.bytes + matrix_bytes(projector), tower.flop + 2 * tokens * matrix_size(projector))


def tower_cost(model: Any, grids: list[tuple[int, int]]) -> Cost:
    """Return the cost of the tower alone; every patch attends to its whole image."""
    vision, tower = model.config.vision_config, model.vision_tower
    patches = [height * width for height, width in grids]
    width = vision.num_attention_heads * vision.head_dim * vision.num_hidden_layers
    attention = sum(4 * width * count * count for count in patches)
    return Cost(matrix_bytes(tower), attention + 2 * sum(patches) * matrix_size(tower))


def matrix_bytes(module: nn.Module) -> int:
    """Return the stored bytes of all weights under `module` with two dimensions or more."""
    return sum(_stored(weight) for weight in matrices(module))


def matrix_size(module: nn.Module) -> int:
    """Return the number of elements of the same weights."""
    return sum(prod(map(int, weight.shape)) for weight in matrices(module))


def matrices(module: nn.Module) -> list[Any]:
    """Return the weights of Linear and Conv2d layers, plain or packed, each once; of an adapted layer its base's."""
    weights = (getattr(part, "weight", None) for part in module.modules())
    found = {id(weight): weight for weight in weights if weight is not None and len(weight.shape) >= 2}
    return list(found.values())


def _decoder_bytes(model: Any) -> int:
    return matrix_bytes(model.decoder.layers) + matrix_bytes(model.lm_head)


def _stored(weight: Any) -> int:
    tensors = [weight] if isinstance(weight, Tensor) else weight.tensors.values()
    return sum(tensor.nbytes for tensor in tensors)
