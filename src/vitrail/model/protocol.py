"""Pretrained: the interface of a PreTrainedModel for loading, saving and resizing."""

from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from vitrail.configs import PretrainedConfig


class Pretrained(Protocol):
    """A model with a configuration, embeddings and a head; also an `nn.Module`."""

    config: Any
    config_class: ClassVar[type[PretrainedConfig]]
    generation_config: Any

    def __init__(self, config: Any) -> None: ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the floating-point weights."""

    @property
    def vision(self) -> bool:
        """Whether the model takes images."""

    def remove_vision(self) -> None:
        """Remove vision tower and projector."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""

    def get_output_embeddings(self) -> Any:
        """Return the head, or None."""

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
