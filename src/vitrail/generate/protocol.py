"""The model protocol of generation: a few attributes and three calls. Models live in model/."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.configs.generation import GenerationConfig
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import KVGeometry
from vitrail.ops.batch import ForwardBatch


class GeneratingModel(Protocol):
    """A decoder over packed rows, with or without a vision tower.

    Letters: L packed rows · D width · V vocabulary · N images.
    """

    generation_config: GenerationConfig

    @property
    def kv_geometry(self) -> KVGeometry:
        """The streams that a cache holds for it."""

    @property
    def vocab_size(self) -> int:
        """V: ids are below it."""

    @property
    def max_model_len(self) -> int:
        """The most positions of a sequence."""

    @property
    def image_token_id(self) -> int | None:
        """The id whose rows are replaced by image features; None for a text-only model."""

    @property
    def dtype(self) -> torch.dtype:
        """Of hidden states and cache."""

    @property
    def device(self) -> torch.device:
        """Where ids are read."""

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Sequence[Tensor]:
        """Images (N,3,H,W) → per image its features (tokens, D)."""

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Ids (L,) → (L, D); rows of image tokens are taken from `features` in order."""

    def step(self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, capture: Any = None) -> Tensor:
        """One pass: (L, D) → logits (n, V) of batch.logits_indices. capture: records what layers compute."""
