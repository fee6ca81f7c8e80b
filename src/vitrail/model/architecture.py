"""Part: the architecture of a model as a tree of modules with their parameter counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class Part:
    """A module: name, description, parameters (0 for a tied head) and children."""

    name: str
    detail: str
    parameters: int
    children: list[Part] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the tree as JSON objects."""
        return {
            "name": self.name,
            "detail": self.detail,
            "parameters": self.parameters,
            "children": [child.as_json() for child in self.children],
        }


def architecture(model: nn.Module) -> Part:
    """Return the tree of a model; equal blocks of a list are one part, "26 × layers"."""
    return _part(type(model).__name__, model, set())


def _part(name: str, module: nn.Module, seen: set[int]) -> Part:
    """Return the part of a module; `seen` holds ids of counted parameters, so that a tied head counts once."""
    if isinstance(module, nn.ModuleList):
        return _blocks(name, module, seen)
    children = [_part(child_name, child, seen) for child_name, child in module.named_children()]
    own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
    weights = list(module.parameters(recurse=False))
    tied = bool(weights) and not own
    seen.update(id(parameter) for parameter in own)
    total = sum(p.numel() for p in own) + sum(child.parameters for child in children)
    detail = _detail(module) + (", tied to the embeddings" if tied else "")
    return Part(name, detail, total, children)


def _blocks(name: str, blocks: nn.ModuleList, seen: set[int]) -> Part:
    """Return one part for a list of equal blocks: parameters of all, children of the first."""
    parts = [_part(name, block, seen) for block in blocks]
    if not parts:
        return Part(name, "none", 0)
    return Part(
        f"{len(parts)} × {name}",
        type(blocks[0]).__name__,
        sum(part.parameters for part in parts),
        parts[0].children,
    )


def _detail(module: nn.Module) -> str:
    """Describe a module in a few words."""
    if isinstance(module, nn.Linear):
        bias = "" if module.bias is None else ", with bias"
        return f"{module.in_features} → {module.out_features}{bias}"
    if isinstance(module, nn.Embedding):
        return f"{module.num_embeddings} × {module.embedding_dim}"
    if isinstance(module, nn.Conv2d):
        height, width = module.kernel_size
        return f"{module.in_channels} × {height} × {width} → {module.out_channels}"
    weights = list(module.parameters(recurse=False))
    if len(weights) == 1 and weights[0].dim() == 1:
        return f"{type(module).__name__} of {weights[0].numel()}"
    return _heads(module) or type(module).__name__


def _heads(module: nn.Module) -> str:
    """Describe the heads of an attention module; "" for other modules."""
    width = getattr(module, "head_dim", None)
    query, key = getattr(module, "q_proj", None), getattr(module, "k_proj", None)
    if not (isinstance(width, int) and isinstance(query, nn.Linear) and isinstance(key, nn.Linear)):
        return ""
    heads, groups = query.out_features // width, key.out_features // width
    return f"{heads} heads of {width}" + (f", {groups} of keys and values" if groups != heads else "")
