"""ModuleMethods: small methods of transformers' models for tools and trainers."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from vitrail.arguments import check, checked
from vitrail.errors import InputError, UnsupportedError


class ModuleMethods:
    """Methods of transformers' models beside forward()."""

    base_model_prefix: ClassVar[str] = ""
    framework: ClassVar[str] = "pt"
    supports_gradient_checkpointing: ClassVar[bool] = True
    _input_grads: Any = None  # the hook of enable_input_require_grads

    @property
    def base_model(self) -> nn.Module:
        """The model without its head; the model itself if it has none."""
        return cast(
            nn.Module, getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self
        )

    @checked
    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Return the bytes of all weights, packed ones included, and of the buffers."""
        module = cast(nn.Module, self)
        tensors: list[Tensor] = [*module.parameters(), *(module.buffers() if return_buffers else ())]
        packed = {
            id(m.packed): m.packed for m in module.modules() if hasattr(m, "packed")
        }  # a tied weight counts once
        tensors += [part for weight in packed.values() for part in cast(Any, weight).tensors.values()]
        return sum(tensor.nelement() * tensor.element_size() for tensor in tensors)

    def enable_input_require_grads(self) -> None:
        """Make the embeddings' output require gradients, for adapters over frozen weights."""
        if self._input_grads is None:
            table = cast(nn.Module, cast(Any, self).get_input_embeddings())
            self._input_grads = table.register_forward_hook(
                lambda _module, _given, out: out.requires_grad_(True)
            )

    def disable_input_require_grads(self) -> None:
        """Undo enable_input_require_grads()."""
        if self._input_grads is not None:
            self._input_grads.remove()
            self._input_grads = None

    def get_position_embeddings(self) -> nn.Module:
        """Raise UnsupportedError: positions are rotary and have no table."""
        raise UnsupportedError(f"{type(self).__name__} has no table of positions; they are rotary.")

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Raise UnsupportedError: positions are rotary and have no table."""
        self.get_position_embeddings()

    def get_parameter_or_buffer(self, target: str) -> Any:
        """Return the parameter or buffer of that name."""
        check("get_parameter_or_buffer", "target", target, str)
        module = cast(nn.Module, self)
        found = dict(module.named_buffers()) | dict(module.named_parameters(remove_duplicate=False))
        if target not in found:
            raise InputError(f"{type(self).__name__} has no parameter or buffer {target[:80]!a}.")
        return found[target]

    def set_attn_implementation(self, attn_implementation: str | dict[str, str]) -> None:
        """Accept every name of an exact attention: all are the same implementation here."""
        from vitrail.configs.attention import check_attention

        check_attention(attn_implementation)
