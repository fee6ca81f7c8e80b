"""What generation knows of a model: a few attributes and three calls. Models live in model/."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.configs.base import PretrainedConfig
from vitrail.configs.generation import GenerationConfig
from vitrail.configs.text import MistralConfig
from vitrail.kv.cache import KVCache
from vitrail.ops.step import Step


class GeneratingModel(Protocol):
    """A decoder over packed rows, with or without a vision tower.

    Letters: L packed rows · D width · V vocabulary · N pictures.
    """

    generation_config: GenerationConfig

    @property
    def config(self) -> PretrainedConfig:
        """The whole configuration."""

    @property
    def text_config(self) -> MistralConfig:
        """The decoder's geometry: what a cache needs, vocab_size and max_position_embeddings."""

    @property
    def image_token_id(self) -> int | None:
        """The id whose rows are replaced by picture features; None for a text-only model."""

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states and cache."""

    @property
    def device(self) -> torch.device:
        """Where ids are read."""

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Sequence[Tensor]:
        """Pictures (N,3,H,W) → per picture its features (tokens, D)."""

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Ids (L,) → (L, D); rows of image tokens are taken from `features` in order."""

    def step(self, hidden: Tensor, step: Step, cache: KVCache | None, record: Any = None) -> Tensor:
        """One pass: (L, D) → logits (kept, V)."""
