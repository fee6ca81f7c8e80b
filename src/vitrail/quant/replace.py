"""QuantLinear, which stands where an nn.Linear was, and which Linear layers a configuration quantises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.errors import CheckpointError
from vitrail.ops.linear import linear
from vitrail.ops.weight import PackedWeight
from vitrail.quant.bitsandbytes import from_state, quantize_4bit, quantize_int8, to_state
from vitrail.quant.config import BitsAndBytesConfig


class QuantLinear(nn.Module):
    """x (…, in) → (…, out) by a packed weight; its state dict holds what bitsandbytes saves for one.

    The packed weight is no parameter: it is never trained and never cast, `.to(dtype)` changes the bias only.
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

    @property
    def weight(self) -> PackedWeight:
        """The packed weight: what `ops.linear` takes in place of a tensor."""
        return self.packed

    @property
    def packed_parameters(self) -> int:
        """How many weights are packed here, for counting a model's parameters."""
        return self.out_features * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype if self.compute_dtype is None or x.dtype == torch.float32 else self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return linear(x.to(dtype), self.packed, bias).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kind={self.packed.kind}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        # `fn` may move, cast or both; codes and scales follow to the device and keep their types.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = {name: _moved(tensor, fn) for name, tensor in self.packed.tensors.items()}
        self.packed = _with_tensors(self.packed, moved)
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
                packed = from_state(prefix.rstrip("."), parts, self.packed.dtype)
            except CheckpointError as error:
                error_msgs.append(str(error))
            else:
                device = self.packed.device
                moved = {name: tensor.to(device, copy=True) for name, tensor in packed.tensors.items()}
                self.packed = _with_tensors(packed, moved)
        if self.bias is not None:
            if prefix + "bias" in state_dict:
                self.bias.data.copy_(state_dict[prefix + "bias"])
            else:
                missing_keys.append(prefix + "bias")


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
