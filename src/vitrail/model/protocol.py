"""VisionLanguageModel: all that generation, the engine and training know of a model."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vitrail.configs import MistralConfig
from vitrail.generate.cache import KVCache
from vitrail.model.record import Record
from vitrail.ops.step import Step


class VisionLanguageModel(Protocol):
    """Three calls on packed rows; (B, T) is known to forward() only. L rows · D width · V vocabulary."""

    @property
    def text_config(self) -> MistralConfig:
        """Geometry of the decoder."""

    @property
    def image_token_id(self) -> int | None:
        """The id whose rows pictures replace; None for a text-only model."""

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states."""

    def encode_images(
        self, pixel_values: Tensor, image_sizes: "Tensor | Sequence[Sequence[int]] | None" = None
    ) -> list[Tensor]:
        """Per picture the rows that replace its image tokens, (tokens, D): what a feature cache stores."""

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """(L,) → (L, D); `features` are the rows of this chunk's image tokens."""

    def step(self, hidden: Tensor, step: Step, cache: KVCache | None, record: Record | None = None) -> Tensor:
        """(L, D) → logits (kept, V)."""
