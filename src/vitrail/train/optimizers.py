"""Choice of optimizer per parameter: PyTorch's AdamW, and Muon (muon.py)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

from vitrail.adapters.layers import LoraTable
from vitrail.train.muon import Muon
from vitrail.train.settings import Chosen


def make_optimizers(model: nn.Module, *, kind: Chosen, lr: float, weight_decay: float) -> list[Optimizer]:
    """Create optimizers for every trainable parameter of a model.

    Args:
        model: to train.
        kind: "adamw", or "muon" for hidden matrices, with AdamW for embeddings, heads, convolutions and vectors.
        lr: learning rate.
        weight_decay: of matrices; one-dimensional parameters have none.
    """
    tables = _tables(model)
    matrices, rest, vectors = [], [], []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif kind == "muon" and parameter.ndim == 2 and id(parameter) not in tables:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    made: list[Optimizer] = []
    if matrices:
        made.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
    if rest or vectors:
        groups = [{"params": rest, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        made.append(AdamW([group for group in groups if group["params"]], lr=lr, betas=(0.9, 0.95), eps=1e-8))
    return made


def _tables(model: nn.Module) -> set[int]:
    """Return the ids (`id()`) of embeddings, their adapters and the head."""
    found: Iterable[nn.Module] = [
        module for module in model.modules() if isinstance(module, (nn.Embedding, LoraTable))
    ]
    head = getattr(model, "get_output_embeddings", lambda: None)()
    own = [parameter for module in found for parameter in module.parameters()]
    return {id(parameter) for parameter in (*own, *(head.parameters() if head is not None else ()))}
