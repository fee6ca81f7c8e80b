"""A decoder of a few lines that obeys the inner interfaces: a quick, exact partner for tests of generate()."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitrail.configs import MistralConfig
from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import KVGeometry
from vitrail.ops.batch import ForwardBatch

WIDTH = 8
IMAGE = 3


class ToyModel:
    """Logits are a fixed random function of the whole past of a row: of every embedding and its position.

    Keys of the cache hold embeddings, so a step that reserves, orders or closes sequences wrongly gives
    other numbers. Sums are taken in float64, so that chunks and batches change nothing.
    """

    def __init__(self, vocabulary: int = 64, positions: int = 512, *, image: int | None = IMAGE) -> None:
        generator = torch.Generator().manual_seed(0)
        config = MistralConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            head_dim=WIDTH,
            num_attention_heads=1,
            num_key_value_heads=1,
            num_hidden_layers=1,
            max_position_embeddings=positions,
        )
        self.kv_geometry = KVGeometry.of(config)
        self.vocab_size, self.max_model_len = vocabulary, positions
        self.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1)
        self.image_token_id = image
        self.dtype = torch.float64
        self.device = torch.device("cpu")
        self.table = torch.randn(vocabulary, WIDTH, generator=generator, dtype=torch.float64)
        self.head = torch.randn(vocabulary, WIDTH, generator=generator, dtype=torch.float64)
        self.turn = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) / 3
        self.steps: list[ForwardBatch] = []
        self.caches: list[KVCache] = []
        self.encoded = 0

    def encode_images(self, pixel_values: Tensor, image_sizes: Any = None) -> list[Tensor]:
        """One feature per two columns of the first pixel row."""
        if self.image_token_id is None:
            raise InputError("a text-only model cannot read images")
        self.encoded += len(pixel_values)
        found = []
        for image, (_, width) in zip(pixel_values.double(), image_sizes.tolist(), strict=True):
            columns = image[0, 0, :width:2]
            found.append(torch.sin(columns[:, None] * torch.arange(1, WIDTH + 1)))
        return found

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        rows = self.table[ids].clone()
        if features is not None:
            assert int((ids == self.image_token_id).sum()) == len(features)
            rows[ids == self.image_token_id] = features
        return rows

    def step(self, hidden: Tensor, batch: ForwardBatch, cache: KVCache | None, capture: Any = None) -> Tensor:
        self.steps.append(batch)
        if cache is not None and cache not in self.caches:
            self.caches.append(cache)
        segments = batch.segments
        if cache is not None:
            layer = cache.layer(0)
            layer.write(hidden[:, None], hidden[:, None], batch.slot_mapping)
        states: list[Tensor] = []
        for n in range(len(segments)):
            first, stop = segments.q_host[n], segments.q_host[n + 1]
            past = segments.past_length(n)
            keys = hidden[first:stop]
            if cache is not None:
                keys = layer.read(batch.block_tables, n, 0, segments.kv_host[n])[0][:, 0]
            assert batch.positions[first:stop].tolist() == list(range(past, past + stop - first))
            weight = torch.cos(torch.arange(len(keys), dtype=torch.float64))[:, None] + 1.5
            sums = torch.cumsum(torch.tanh(keys * weight), dim=0)[past:]
            states.append(torch.sin(sums @ self.turn + keys[past:]))
        rows = torch.cat(states) * 2
        rows = rows if batch.logits_indices is None else rows[batch.logits_indices]
        return rows @ self.head.T

    @property
    def open_sequences(self) -> int:
        return sum(len(cache.sequences) for cache in self.caches)


class Letters:
    """A tokenizer of one character per id: a, b, c, …; ids below 4 are control tokens."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        ids: Sequence[int] = token_ids.tolist() if isinstance(token_ids, Tensor) else token_ids
        return "".join(f"<{i}>" if i < 4 else chr(93 + i) for i in ids if i >= 4 or not skip_special_tokens)
