"""PromptMemory: prefix cache for one conversation; reuses KV entries and image features shared with the previous prompt.

Operates on ids and preprocessed images; messages and text are in dialogue.py. Letters: L positions of a prompt · N images.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from vitrail.configs.generation import GenerationConfig
from vitrail.errors import InputError
from vitrail.generate.loop import generate
from vitrail.generate.outputs import GenerateOutput
from vitrail.generate.protocol import GeneratingModel
from vitrail.generate.runner import AHEAD
from vitrail.images.fingerprint import fingerprint
from vitrail.kv.cache import KVCache
from vitrail.kv.geometry import stored_dtype

FEATURE_BYTES = 1 << 30  # maximum bytes of cached image features; the oldest are evicted first


@dataclass(frozen=True)
class PromptImage:
    """An image of a prompt. key: `fingerprint` of its pixels; tokens: its image tokens; pixels: returns (3, H, W)."""

    key: bytes
    tokens: int
    pixels: Callable[[], Tensor]


@dataclass(frozen=True)
class Continuation:
    """Result of one prompt.

    Attributes:
        ids: new ids.
        reused, computed: positions of the prompt that were cached, and that went through the decoder.
        encoded: images that went through the vision tower.
        reason: why it ended ("eos", "length", "criteria", …).
    """

    ids: tuple[int, ...]
    reused: int
    computed: int
    encoded: int
    reason: str


class PromptMemory:
    """Keys and values of one prompt, and features of its images.

    The next prompt may differ in any way: the common prefix, ids and image contents alike, is reused; the rest is dropped
    and computed. Results equal those of a fresh start up to the rounding differences of splitting a prompt into other
    steps.
    """

    def __init__(self, model: GeneratingModel, *, feature_bytes: int = FEATURE_BYTES) -> None:
        self.model = model
        self._tower = _RememberingModel(model, feature_bytes)
        self._cache: KVCache | None = None
        self._dtype = model.dtype  # of the cache
        self._sequence = 0
        self._ids: list[int] = []
        self._images: list[tuple[int, bytes]] = []  # first position and key of each

    @property
    def length(self) -> int:
        """Number of cached positions."""
        return len(self._ids)

    @property
    def encoded(self) -> int:
        """Number of images encoded so far."""
        return self._tower.encoded

    def forget(self) -> None:
        """Free the cache and the features."""
        self._cache = None
        self._ids, self._images = [], []
        self._tower.forget()

    def go_on(
        self, ids: Sequence[int], images: Sequence[PromptImage] = (), /, **options: Any
    ) -> Continuation:
        """Generate a completion of the prompt `ids` (L,), whose image tokens belong to `images` in order.

        Args:
            ids: of the whole prompt.
            images: of the prompt, in order.
            options: of generate(), stopping_criteria, streamer and progress included.

        If it raises, everything that this call cached is dropped again.

        Raises:
            InputError: images and image tokens do not fit; also what generate() raises.
        """
        spans = self._spans(ids, images)
        self._settle_dtype(options)
        reused = self._common(ids, images, spans)
        fresh = [image for image, (start, _) in zip(images, spans, strict=True) if start >= reused]
        cache = self._cut(reused, room=len(ids) + AHEAD)
        whole, before, reason = list(ids), self.encoded, ""
        try:
            output = generate(
                cast(GeneratingModel, self._tower),
                torch.tensor([whole], device=self.model.device),
                attention_mask=torch.ones(1, len(whole), dtype=torch.long),
                past_key_values=cache,
                return_dict_in_generate=True,
                **_batch(fresh),
                **options,
            )
            if isinstance(output, GenerateOutput):
                whole = output.sequences[0].tolist()
                reason = (output.finish_reasons or ("",))[0]
        finally:
            self._ids = whole[: cache.length(self._sequence)]
            self._images = [
                (start, image.key)
                for image, (start, stop) in zip(images, spans, strict=True)
                if stop <= len(self._ids)
            ]
        return Continuation(
            ids=tuple(whole[len(ids) :]),
            reused=reused,
            computed=len(ids) - reused,
            encoded=self.encoded - before,
            reason=reason,
        )

    def _spans(self, ids: Sequence[int], images: Sequence[PromptImage]) -> list[tuple[int, int]]:
        """Return (start, stop) of each image among the ids, from its first image token past its last."""
        token = self.model.image_token_id
        places = [] if token is None else [place for place, index in enumerate(ids) if index == token]
        wanted = sum(image.tokens for image in images)
        if wanted != len(places):
            raise InputError(
                f"the prompt has {len(places)} image tokens, its {len(images)} images need {wanted}; lay them out "
                "with the processor of this checkpoint."
            )
        spans, begin = [], 0
        for image in images:
            spans.append((places[begin], places[begin + image.tokens - 1] + 1))
            begin += image.tokens
        return spans

    def _common(
        self, ids: Sequence[int], images: Sequence[PromptImage], spans: Sequence[tuple[int, int]]
    ) -> int:
        """Return the length of the cached common prefix; it never ends inside an image and never covers the whole prompt."""
        common = 0
        limit = min(len(self._ids), len(ids) - 1)  # the last position is computed again for its logits
        while common < limit and self._ids[common] == ids[common]:
            common += 1
        known = dict(self._images)
        for image, (start, stop) in zip(images, spans, strict=True):
            if start < common and (stop > common or known.get(start) != image.key):
                return start
        return common

    def _settle_dtype(self, options: Mapping[str, Any]) -> None:
        """Determine the cache dtype as generate() will; a different one than before drops the cache."""
        given = (options.get("cache_dtype"), getattr(options.get("generation_config"), "cache_dtype", None))
        named = [name for name in (*given, self.model.generation_config.cache_dtype) if name is not None]
        dtype = stored_dtype(
            GenerationConfig(cache_dtype=next(iter(named), None)).cache_dtype, self.model.dtype
        )
        if dtype != self._dtype:
            self._cache, self._dtype = None, dtype
            self._ids, self._images = [], []

    def _cut(self, length: int, *, room: int) -> KVCache:
        """Return the cache with one sequence truncated to `length` positions."""
        if self._cache is None:
            geometry, device = self.model.kv_geometry, self.model.device
            self._cache = KVCache.sized(geometry, [room], dtype=self._dtype, device=device)
            self._sequence = self._cache.open()
        self._cache.truncate(self._sequence, length)
        self._ids = self._ids[:length]
        return self._cache


class _RememberingModel:
    """A model whose vision tower encodes each image once. features: at most `most` bytes are kept."""

    def __init__(self, model: GeneratingModel, most: int) -> None:
        self._model, self._most = model, most
        self.shared = model  # that other calls may use at the same time
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self.encoded = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)  # everything else is the model's

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None) -> Sequence[Tensor]:
        """Return features (tokens, D) per image; only images without cached features are encoded."""
        if image_sizes is None:
            return self._model.encode_images(pixel_values, None)
        sizes = image_sizes.tolist()
        keys = [fingerprint(p[:, :h, :w]) for p, (h, w) in zip(pixel_values, sizes, strict=True)]
        missing = [n for n, key in enumerate(keys) if key not in self._features and key not in keys[:n]]
        found = dict(self._features)
        if missing:
            new = self._model.encode_images(pixel_values[missing], image_sizes[missing])
            self.encoded += len(missing)
            found.update({keys[n]: features for n, features in zip(missing, new, strict=True)})
        for key in keys:
            self._features[key] = found[key]
            self._features.move_to_end(key)
        self._shrink()
        return [found[key] for key in keys]

    def forget(self) -> None:
        self._features.clear()

    def _shrink(self) -> None:
        held = sum(features.nbytes for features in self._features.values())
        while held > self._most and self._features:
            _, oldest = self._features.popitem(last=False)
            held -= oldest.nbytes


def _batch(images: Sequence[PromptImage]) -> dict[str, Any]:
    """Return pixel_values (N, 3, H, W), padded at right and bottom, and image_sizes (N, 2); {} without images."""
    if not images:
        return {}
    pixels = [image.pixels() for image in images]
    height, width = (max(p.shape[axis] for p in pixels) for axis in (1, 2))
    padded = [pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pixels]
    sizes = torch.tensor([[p.shape[1], p.shape[2]] for p in pixels])
    return {"pixel_values": torch.stack(padded), "image_sizes": sizes}
