"""Modules with a packed weight that replace nn.Linear and nn.Embedding. policy.py chooses which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import CheckpointError
from vitrail.ops.linear import embedding, linear
from vitrail.ops.weight import PackedWeight
from vitrail.quant import bitsandbytes_cuda  # noqa: F401  (it registers a GPU's products)
from vitrail.quant.formats import WeightFormat


class Quantized(nn.Module):
    """A module with a packed weight (out, in); its state dict has the tensors of the weight's format.

    The packed weight is not a parameter: it is never trained or cast. `.to(device)` moves it; `.to(dtype)` sets the dtype
    of decoded values for formats without one of their own.
    """

    packed: PackedWeight
    format: WeightFormat

    @property
    def weight(self) -> PackedWeight:
        """The packed weight, accepted by `ops.linear` in place of a tensor."""
        return self.packed

    @property
    def packed_parameters(self) -> int:
        """Number of packed weights, for counting a model's parameters."""
        rows, columns = self.packed.shape
        return rows * columns

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantized:
        # `fn` may move, cast or both; codes and scales move to the device and keep their dtypes.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = {name: _moved(tensor, fn) for name, tensor in self.packed.tensors.items()}
        dtype = self.packed.dtype
        if self.format.follows_dtype:
            dtype = fn(torch.empty(0, dtype=dtype, device=self.packed.device)).dtype
        self.packed = self.packed.with_tensors(moved, dtype)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, tensor in self.format.to_state(self.packed).items():
            destination[prefix + key] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = self.format.to_state(self.packed)
        missing_keys.extend(prefix + key for key in expected if prefix + key not in state_dict)
        parts = {key: state_dict[prefix + key] for key in expected if prefix + key in state_dict}
        if len(parts) == len(expected):
            try:
                packed = self.format.from_state(
                    prefix.rstrip("."), parts, self.packed.shape, self.packed.dtype
                )
            except CheckpointError as error:
                error_msgs.append(str(error))
            else:
                device = self.packed.device
                moved = {name: tensor.to(device, copy=True) for name, tensor in packed.tensors.items()}
                self.packed = packed.with_tensors(moved)
        bias: nn.Parameter | None = getattr(self, "bias", None)
        if bias is not None:
            if prefix + "bias" in state_dict:
                bias.data.copy_(state_dict[prefix + "bias"])
            else:
                missing_keys.append(prefix + "bias")


class QuantLinear(Quantized):
    """Linear layer x (…, in) → (…, out) with a packed weight.

    Products are computed in `compute_dtype` (None: x's own), but a float32 x is never rounded to it.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: PackedWeight,
        format: WeightFormat,
        bias: nn.Parameter | None = None,
        *,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.packed = packed
        self.format = format
        self.compute_dtype = compute_dtype
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if self.compute_dtype is None or x.dtype == torch.float32 else self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(x.to(dtype), self.packed, bias).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, format={self.format.name}"
        )


class QuantEmbedding(Quantized):
    """Embedding, ids (…) → rows (…, D), with a packed table (V, D) in its dtype. Only these rows are decoded."""

    def __init__(self, packed: PackedWeight, format: WeightFormat) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.packed = packed
        self.format = format

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.packed)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, format={self.format.name}"


class TiedHead(QuantLinear):
    """LM head that shares the packed weight of the embedding; it has, moves, counts and saves nothing of its own."""

    def __init__(self, table: QuantEmbedding) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = table.packed.shape
        self._table = (table,)  # in a tuple, so that it is not a submodule
        self.format = table.format
        self.compute_dtype = None
        self.register_parameter("bias", None)

    @property
    def packed(self) -> PackedWeight:  # type: ignore[override]
        """The embedding's packed weight."""
        return self._table[0].packed

    @property
    def packed_parameters(self) -> int:
        """0: the embedding counts them."""
        return 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TiedHead:
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save nothing: the embedding is saved."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing: the embedding is loaded."""


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    result = fn(tensor)
    return result if result.dtype == tensor.dtype else tensor.to(result.device)


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the module at path `name` by `layer`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
