"""Layers with adapters, in the place of a linear layer, an embedding or a whole module. Finds no modules.

Letters: r rank · s scaling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import ConfigError
from vitrail.ops.linear import embedding, linear
from vitrail.ops.weight import dequantize


class Adapted(nn.Module):
    """A layer and its adapters. `active`: the names of those in use, in order; `frozen`: those not trained here."""

    base_layer: nn.Module
    adapters: nn.ModuleDict
    active: tuple[str, ...]
    frozen: set[str]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.adapters = nn.ModuleDict()
        self.active = ()
        self.frozen = set()
        self.training = base_layer.training

    @property
    def foundation(self) -> nn.Module:
        """The layer, or its trained copy from the first active adapter that has one."""
        whole = [part for part in self._chosen if not isinstance(part, (Lora, LoraTable))]
        return whole[0] if whole else self.base_layer

    @property
    def current(self) -> list[Any]:
        """The matrices in use."""
        return [part for part in self._chosen if isinstance(part, (Lora, LoraTable))]

    @property
    def _chosen(self) -> list[nn.Module]:
        return [self.adapters[name] for name in self.active if name in self.adapters]

    @property
    def weight(self) -> Any:
        """The weight in use, without matrices."""
        return self.foundation.weight

    @property
    def bias(self) -> Any:
        """The bias in use, or None."""
        return getattr(self.foundation, "bias", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":  # set when a head is tied to the embeddings
            self.base_layer.weight = value
        else:
            super().__setattr__(name, value)


class Lora(nn.Module):
    """The matrices of one adapter on one linear layer: lora_A (r, in), lora_B (out, r), with DoRA a length per row."""

    def __init__(
        self, width: int, height: int, rank: int, scaling: float, dropout: float, **where: Any
    ) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, width, **where))
        self.lora_B = nn.Parameter(torch.zeros(height, rank, **where))
        self.lora_magnitude_vector: nn.Parameter | None = None
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout)

    def draw(self, how: bool | str) -> None:
        """Initialise A at random, B to zero; False: B at random too; "orthogonal": both, with B·A = 0 (as PEFT)."""
        if how == "orthogonal":
            self._draw_orthogonal()
            return
        if how == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / self.lora_A.shape[0])
        else:
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        if how is False:
            nn.init.kaiming_uniform_(self.lora_B, a=math.sqrt(5))

    @torch.no_grad()
    def _draw_orthogonal(self) -> None:
        (rank, width), height = self.lora_A.shape, self.lora_B.shape[0]
        if rank % 2:
            raise ConfigError(f"init_lora_weights='orthogonal' needs an even r, got {rank}.")
        rows, _ = torch.linalg.qr(torch.randn(rank, rank))
        self.lora_A.copy_((torch.randn(width, rank // 2) @ rows[0::2]).T / 10)
        self.lora_B.copy_((torch.randn(rank // 2, height).T @ rows[1::2]) / 10)

    def learn_lengths(self, weight: Tensor) -> None:
        """Initialise DoRA: the length of each row of the adapted weight is trained too."""
        lengths = self._lengths(weight).to(self.lora_A.dtype)
        self.lora_magnitude_vector = nn.Parameter(lengths)

    def product(self) -> Tensor:
        """Return s·B·A (out, in), the adapter's addition to the weight."""
        return self.scaling * (self.lora_B @ self.lora_A)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the adapted weight (out, in), computed in float32 at least."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        added = wide + self.product().to(wide.dtype)
        if self.lora_magnitude_vector is not None:
            added = added * (self.lora_magnitude_vector / added.norm(dim=1))[:, None]
        return added

    def add_to(self, base: Tensor, x: Tensor, layer: Adapted) -> Tensor:
        """Return `base`, the layer's output so far (…, out), with this adapter's part added."""
        seen = self.dropout(x.to(self.lora_A.dtype))
        low = linear(linear(seen, self.lora_A), self.lora_B) * self.scaling
        out: Tensor = base + low
        if self.lora_magnitude_vector is None:
            return out
        weight = dequantize(layer.weight, torch.float32)
        factor = (self.lora_magnitude_vector / self._lengths(weight)).to(base.dtype)
        plain = base if layer.bias is None else base - layer.bias
        if self.training and self.dropout.p:
            plain = linear(seen.to(x.dtype), layer.weight)
        change: Tensor = (factor - 1) * (plain + low)
        return out + change

    def _lengths(self, weight: Tensor) -> Tensor:
        # Constant in the backward pass, as in the paper (§4.3).
        with torch.no_grad():
            lengths: Tensor = (weight.float() + self.product().float()).norm(dim=1)
        return lengths


class LoraLinear(Adapted):
    """A linear layer, plain or packed, with adapters: base(x) + s·B·A·x for each active one.

    A packed weight stays packed; the gradient of x passes through it, and it has none itself.
    """

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return int(self.base_layer.in_features)  # type: ignore[arg-type]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return int(self.base_layer.out_features)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out) in the type of the layer's own output."""
        base: Tensor = self.foundation(x)
        out = base
        for lora in self.current:
            out = lora.add_to(out, x, self)
        return out.to(base.dtype)


class LoraTable(nn.Module):
    """The matrices of one adapter on an embedding: lora_embedding_A (r, V), lora_embedding_B (D, r)."""

    def __init__(self, rows: int, width: int, rank: int, scaling: float, **where: Any) -> None:
        super().__init__()
        self.lora_embedding_A = nn.Parameter(torch.zeros(rank, rows, **where))
        self.lora_embedding_B = nn.Parameter(torch.zeros(width, rank, **where))
        self.scaling = scaling

    def draw(self, how: bool | str) -> None:
        """Initialise B at random, A to zero; A at random too for False."""
        nn.init.normal_(self.lora_embedding_B)
        if how is False:
            nn.init.normal_(self.lora_embedding_A)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the adapted table (V, D), computed in float32 at least."""
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return wide + self.scaling * (self.lora_embedding_B @ self.lora_embedding_A).T.to(wide.dtype)


class LoraEmbedding(Adapted):
    """An embedding with adapters."""

    def forward(self, ids: Tensor) -> Tensor:
        """Map (…) to (…, D)."""
        base: Tensor = self.foundation(ids)
        out = base
        for table in self.current:
            low = embedding(ids, table.lora_embedding_A.T)
            out = out + linear(low, table.lora_embedding_B) * table.scaling
        return out.to(base.dtype)


class Retrained(Adapted):
    """A module of another kind, replaced by the adapters' trained copies (PEFT's modules_to_save)."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the copy in use, or of the module itself."""
        return self.foundation(*args, **kwargs)
