"""Model protocol of generation: attributes and the calls embed, encode_images and step. Models are in model/."""

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
        """The streams to cache per layer."""

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""

    @property
    def max_model_len(self) -> int:
        """Maximum number of positions of a sequence."""

    @property
    def image_token_id(self) -> int | None:
        """Id of the image token, whose embeddings are replaced by features; None for a text-only model."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of hidden states and cache."""

    @property
    def device(self) -> torch.device:
        """Device of the ids."""

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Sequence[Tensor]:
        """Encode images (N, 3, H, W) to features (tokens, D) per image."""

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """Embed ids (L,) to (L, D); image tokens take `features` in order."""

    def step(self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, capture: Any = None) -> Tensor:
        """Run one pass of the decoder.

        Args:
            hidden: (L, D).
            batch: positions, segments, slots.
            cache: to read and write; None without one.
            capture: records the layers' outputs.

        Returns:
            Logits (n, V) of batch.logits_indices.
        """
