"""What a piece of work must do at least: bytes to read, products to add. Counted from the model, nothing is run.

Letters: A query heads · G key/value heads · K head width · S cached and new positions.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitrail.bench.matmul import Shape


@dataclass(frozen=True, slots=True)
class Cost:
    """bytes: each read once; flop: multiplications and additions."""

    bytes: int
    flop: int


def decode_cost(model: Any, rows: int, context: int, cache_bytes: float) -> Cost:
    """One step of `rows` sequences with `context` cached positions each.

    cache_bytes: of one position of one sequence, keys and values of all layers.
    """
    text = model.text_config
    weights = matrix_bytes(model.decoder.layers) + matrix_bytes(model.lm_head)
    products = 2 * rows * (matrix_size(model.decoder.layers) + matrix_size(model.lm_head))
    heads = text.num_attention_heads * text.head_dim * text.num_hidden_layers
    return Cost(int(weights + rows * context * cache_bytes), products + 4 * rows * (context + 1) * heads)


def prefill_cost(model: Any, rows: int) -> Cost:
    """One prompt of `rows` positions; logits of the last one only."""
    text = model.text_config
    head = model.lm_head
    heads = text.num_attention_heads * text.head_dim * text.num_hidden_layers
    products = 2 * rows * matrix_size(model.decoder.layers) + 2 * matrix_size(head)
    return Cost(
        matrix_bytes(model.decoder.layers) + matrix_bytes(head), products + 2 * rows * (rows + 1) * heads
    )


def vision_cost(model: Any, grids: list[tuple[int, int]]) -> Cost:
    """Tower and projector for pictures of (rows, columns) patches."""
    tower, projector = tower_cost(model, grids), model.multi_modal_projector
    merge = getattr(model.config, "spatial_merge_size", 1)
    joined = sum(height * width for height, width in grids) // merge**2
    return Cost(tower.bytes + matrix_bytes(projector), tower.flop + 2 * joined * matrix_size(projector))


def tower_cost(model: Any, grids: list[tuple[int, int]]) -> Cost:
    """The tower alone; every patch sees its whole picture."""
    vision, tower = model.config.vision_config, model.vision_tower
    patches = [height * width for height, width in grids]
    heads = vision.num_attention_heads * vision.head_dim * vision.num_hidden_layers
    attention = sum(4 * heads * count * count for count in patches)
    return Cost(matrix_bytes(tower), attention + 2 * sum(patches) * matrix_size(tower))


def decoder_shapes(model: Any, rows: int) -> list[Shape]:
    """The different products of one decoder layer."""
    return _shapes(model.decoder.layers[0], rows)


def tower_shapes(model: Any, rows: int) -> list[Shape]:
    """The different products of one layer of the tower."""
    return _shapes(model.vision_tower.transformer.layers[0], rows)


def matrix_bytes(module: nn.Module) -> int:
    """Bytes of all weights of two dimensions and more under `module`, as they are stored."""
    return sum(_stored(weight) for weight in _matrices(module))


def matrix_size(module: nn.Module) -> int:
    """Numbers in the same weights."""
    return sum(_numbers(weight) for weight in _matrices(module))


def _shapes(layer: nn.Module, rows: int) -> list[Shape]:
    found = {(int(weight.shape[0]), int(weight.shape[1])) for weight in _matrices(layer)}
    return [Shape(rows, out, width) for out, width in sorted(found)]


def _matrices(module: nn.Module) -> list[Any]:
    """Weights of Linear and Conv2d layers, plain or packed."""
    weights = (getattr(part, "weight", None) for part in module.modules())
    return [weight for weight in weights if weight is not None and len(weight.shape) >= 2]


def _stored(weight: Any) -> int:
    if isinstance(weight, Tensor):
        return weight.numel() * weight.element_size()
    return sum(tensor.numel() * tensor.element_size() for tensor in weight.tensors.values())


def _numbers(weight: Any) -> int:
    size = 1
    for side in weight.shape:
        size *= int(side)
    return size
