"""Attention over packed rows, segment by segment, planned once per batch and device with one plan for all layers.

Without gradients the device's backend computes it (ops/backends.py), with gradients the PyTorch definition
(ops/reference/attention.py).

Letters: L packed rows · A query heads · G key/value heads · K head width · T new rows · S keys of one segment.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.ops.backend import AttentionBackend, AttentionMetadata
from vitrail.ops.backends import backend_for
from vitrail.ops.kv import LayerKV
from vitrail.ops.reference import attention as reference_attention


class LayerCache(Protocol):
    """The part of a cache that attention uses; kv/cache.py implements it."""

    def layer(self, index: int, device: torch.device | None = None) -> LayerKV:
        """Return one layer's keys and values on `device`."""


class AttentionPlan:
    """Attention of one batch. The first call on a device plans; all later calls reuse its metadata."""

    def __init__(self, metadata: AttentionMetadata, cache: LayerCache | None = None) -> None:
        segments = metadata.segments
        if cache is None and segments.q_host[-1] != sum(segments.kv_host):
            past = sum(segments.kv_host) - segments.q_host[-1]
            raise InputError(f"the segments count {past} cached keys, but no cache was passed.")
        self._metadata, self._cache = metadata, cache
        self._planned: list[tuple[torch.device, AttentionBackend, AttentionMetadata]] = []

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, layer: int = 0, window: int | None = None
    ) -> Tensor:
        """Compute softmax attention of packed rows within their segments.

        Args:
            q: (L, A, K).
            k, v: (L, G, K), the new rows; G divides A. With a cache they are written first, and attention reads the
                cache's copies, in its precision.
            scale: factor of the scores before the softmax.
            layer: index of the layer in the cache.
            window: maximum number of keys a row attends to, itself included; None: all.

        Returns:
            (L, A, K) in q's dtype.
        """
        kv = None if self._cache is None else self._cache.layer(layer, q.device)
        backend, metadata = self._on(q, kv)
        if kv is not None:
            kv.write(k, v, reference_attention.slots_of(metadata))
        window = window if metadata.segments.causal else None
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            if kv is not None and kv.keys.dtype != k.dtype:
                held = kv.at(reference_attention.slots_of(metadata), k.dtype)
                k, v = (x + (stored - x).detach() for x, stored in zip((k, v), held, strict=True))
            return reference_attention.attention(q, k, v, metadata, scale=scale, kv=kv, window=window)
        return backend.attend(q, k, v, kv, metadata, scale=scale, window=window)

    def weights(
        self, q: Tensor, k: Tensor, *, scale: float, layer: int = 0, window: int | None = None
    ) -> list[Tensor]:
        """Return the softmax weights, per segment (A, T, S) in q's dtype, for `output_attentions`. Quadratic memory."""
        kv = None if self._cache is None else self._cache.layer(layer, q.device)
        metadata = self._on(q, kv)[1]
        segments, found = metadata.segments, []
        for index in range(len(segments)):
            new, total = segments.query_length(index), segments.kv_host[index]
            rows = slice(segments.q_host[index], segments.q_host[index] + new)
            keys = self._seen(k, 0, index, metadata, kv).to(q.dtype)
            grouped = reference_attention.grouped(q[rows], keys.shape[1])
            scores = torch.einsum("tghk,sgk->ghts", grouped, keys) * scale
            if segments.causal:
                hidden = reference_attention.unseen(total - new, new, 0, total, window, q.device)
                scores = scores.masked_fill(hidden, float("-inf"))
            found.append(torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype).flatten(0, 1))
        return found

    def mix(self, weights: Sequence[Tensor], v: Tensor, *, layer: int = 0) -> Tensor:
        """Return (L, A, K): the values under `weights()`. v: (L, G, K), already written by `attend`."""
        kv = None if self._cache is None else self._cache.layer(layer, v.device)
        metadata = self._on(v, kv)[1]
        found = []
        for index, shares in enumerate(weights):
            values = self._seen(v, 1, index, metadata, kv)
            grouped = shares.view(values.shape[1], -1, *shares.shape[1:])
            found.append(torch.einsum("ghts,sgk->tghk", grouped, values).flatten(1, 2))
        return torch.cat(found)

    @staticmethod
    def _seen(x: Tensor, which: int, index: int, metadata: AttentionMetadata, kv: LayerKV | None) -> Tensor:
        """Return keys (0) or values (1) of a segment, (S, G, K): cached ones, then the new rows with their gradient."""
        segments = metadata.segments
        new, total = segments.query_length(index), segments.kv_host[index]
        own = x[segments.q_host[index] : segments.q_host[index] + new]
        if new == total:
            return own
        stored = reference_attention.read(kv, metadata, index, 0, total)[which].to(x.dtype)
        if not (own.requires_grad and torch.is_grad_enabled()):
            return stored
        return torch.cat([stored[: total - new], with_gradient_of(stored[total - new :], own)])

    def _on(self, q: Tensor, kv: LayerKV | None) -> tuple[AttentionBackend, AttentionMetadata]:
        for device, backend, metadata in self._planned:
            if device == q.device:
                return backend, metadata
        backend = backend_for(q.device)
        metadata = backend.plan(self._metadata.to(q.device), kv, q.dtype)
        self._planned.append((q.device, backend, metadata))
        return backend, metadata


class _WithGradientOf(torch.autograd.Function):
    """The first tensor's values; the gradient goes to the second."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, carrier: Tensor) -> Tensor:
        return numbers.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def with_gradient_of(numbers: Tensor, carrier: Tensor) -> Tensor:
    """Return `numbers`, bit for bit, with the gradient of `carrier`, which computes the same by other steps."""
    out: Tensor = _WithGradientOf.apply(numbers.detach(), carrier)  # type: ignore[no-untyped-call]
    return out
