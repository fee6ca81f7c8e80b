"""The interface of a PreTrainedModel as loading, saving and resizing see it."""

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
        """The type of its floating-point weights."""

    @property
    def vision(self) -> bool:
        """Whether it takes images."""

    def remove_vision(self) -> None:
        """Take the vision tower and the projector out."""

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of ids."""

    def get_output_embeddings(self) -> Any:
        """The head, or None."""

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding of ids."""
