"""Modules that stand where an nn.Linear or an nn.Embedding was and hold a packed weight. Chooses none (policy.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import CheckpointError
from vitrail.ops.linear import embedding, linear
from vitrail.ops.weight import PackedWeight
from vitrail.quant import bitsandbytes_cuda, own_layout  # noqa: F401  (the first one registers a GPU's products)
from vitrail.quant.bitsandbytes import (
    from_state as from_foreign_state,
    quantize_4bit,
    quantize_int8,
    to_state as to_foreign_state,
)
from vitrail.quant.config import BitsAndBytesConfig


class Quantized(nn.Module):
    """A module with a packed weight (out, in); its state dict holds what its format saves for one.

    The packed weight is no parameter: it is never trained and never cast. `.to(device)` moves it; `.to(dtype)` says,
    for the formats that have no result type of their own, what decoded values are rounded to.
    """

    packed: PackedWeight
    storage: torch.dtype = torch.uint8

    @property
    def weight(self) -> PackedWeight:
        """The packed weight: what `ops.linear` takes in place of a tensor."""
        return self.packed

    @property
    def packed_parameters(self) -> int:
        """How many weights are packed here, for counting a model's parameters."""
        rows, columns = self.packed.shape
        return rows * columns

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantized:
        # `fn` may move, cast or both; codes and scales follow to the device and keep their types.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = {name: _moved(tensor, fn) for name, tensor in self.packed.tensors.items()}
        dtype = self.packed.dtype
        if self.packed.kind in own_layout.OWN_KINDS:
            dtype = fn(torch.empty(0, dtype=dtype, device=self.packed.device)).dtype
        self.packed = PackedWeight(self.packed.kind, self.packed.shape, self.packed.group, moved, dtype)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, tensor in to_state(self.packed, self.storage).items():
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
        expected = to_state(self.packed, self.storage)
        missing_keys.extend(prefix + key for key in expected if prefix + key not in state_dict)
        parts = {key: state_dict[prefix + key] for key in expected if prefix + key in state_dict}
        if len(parts) == len(expected):
            try:
                packed = from_state(prefix.rstrip("."), parts, self.packed)
            except CheckpointError as error:
                error_msgs.append(str(error))
            else:
                device = self.packed.device
                moved = {name: tensor.to(device, copy=True) for name, tensor in packed.tensors.items()}
                self.packed = _with_tensors(packed, moved)
        bias: nn.Parameter | None = getattr(self, "bias", None)
        if bias is not None:
            if prefix + "bias" in state_dict:
                bias.data.copy_(state_dict[prefix + "bias"])
            else:
                missing_keys.append(prefix + "bias")


class QuantLinear(Quantized):
    """x (…, in) → (…, out) by a packed weight.

    Products are computed in `compute_dtype` (None: in x's own), but a float32 x is never rounded for it.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        packed: PackedWeight,
        bias: nn.Parameter | None = None,
        *,
        compute_dtype: torch.dtype | None = None,
        storage: torch.dtype = torch.uint8,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.packed = packed
        self.compute_dtype = compute_dtype
        self.storage = storage
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if self.compute_dtype is None or x.dtype == torch.float32 else self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(x.to(dtype), self.packed, bias).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kind={self.packed.kind}"
        )


class QuantEmbedding(Quantized):
    """Ids (…) → rows (…, D) of a packed table (V, D), in its result type. Only the rows asked for are decoded."""

    def __init__(self, packed: PackedWeight) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = packed.shape
        self.packed = packed

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.packed)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, kind={self.packed.kind}"


class TiedHead(QuantLinear):
    """A head whose weight is the packed table of the embeddings: it holds, moves, counts and saves none of its own."""

    def __init__(self, table: QuantEmbedding) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = table.packed.shape
        self._table = (table,)  # in a tuple, so that it is no part of this module
        self.compute_dtype = None
        self.register_parameter("bias", None)

    @property
    def packed(self) -> PackedWeight:  # type: ignore[override]
        """The table's."""
        return self._table[0].packed

    @property
    def packed_parameters(self) -> int:
        """None: the table counts them."""
        return 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TiedHead:
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Nothing: the table is saved."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the table is loaded."""


def to_state(packed: PackedWeight, storage: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    """What a file holds for a packed weight of any kind: the part of the key after the module's name → tensor."""
    if packed.kind in own_layout.OWN_KINDS:
        return own_layout.to_state(packed)
    return to_foreign_state(packed, storage)


def from_state(name: str, parts: Mapping[str, Tensor], like: PackedWeight) -> PackedWeight:
    """A packed weight of the kind and shape of `like` from what a file holds; CheckpointError for what does not fit."""
    if like.kind in own_layout.OWN_KINDS:
        return own_layout.from_state(name, parts, like.shape, like.dtype)
    return from_foreign_state(name, parts, like.dtype)


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    result = fn(tensor)
    return result if result.dtype == tensor.dtype else tensor.to(result.device)


def _with_tensors(packed: PackedWeight, tensors: Mapping[str, Tensor]) -> PackedWeight:
    return PackedWeight(packed.kind, packed.shape, packed.group, tensors, packed.dtype)


def quantize(weight: Tensor, config: BitsAndBytesConfig) -> PackedWeight:
    """The packed form of a Linear's weight (out, in) that `config` asks for."""
    if config.load_in_8bit:
        return quantize_int8(weight)
    return quantize_4bit(weight, config.bnb_4bit_quant_type, nested=config.bnb_4bit_use_double_quant)


def quantized_names(model: nn.Module, config: BitsAndBytesConfig, tied: Iterable[str] = ()) -> set[str]:
    """The paths of the Linear layers that `config` quantises, chosen as transformers 4.57 chooses them.

    Without llm_int8_skip_modules every one but lm_head; with it, every one that is not listed by its last
    name, its whole path, or the path of a module that holds it. `tied` are paths that share the embedding's
    tensor; they always stay.
    """
    if not config.is_quantizable():
        return set()
    skip = ["lm_head"] if config.llm_int8_skip_modules is None else config.llm_int8_skip_modules
    kept = set(tied)
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in kept and not _skipped(name, skip)
    }


def _skipped(name: str, skip: Iterable[str]) -> bool:
    return any(name.rpartition(".")[2] == key or name == key or f"{key}." in name for key in skip)


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` where the module at the path `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
