"""ImageFeatures: features of a call's images, assigned to the prompts' image tokens in order."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import InputError
from vitrail.generate.protocol import GeneratingModel

PIXELS_AT_ONCE = 2048 * 2048  # maximum pixels per pass of the vision tower


class ImageFeatures:
    """Features of the images, each encoded once, a few images per pass.

    Args:
        model: encodes images.
        pixel_values: (N, 3, H, W).
        image_sizes: (N, 2) height and width of each image without padding, or None.

    Raises:
        InputError: shapes that do not fit each other, or a text-only model.
    """

    def __init__(self, model: GeneratingModel, pixel_values: Tensor, image_sizes: Any) -> None:
        if pixel_values.dim() != 4 or (image_sizes is not None and len(image_sizes) != len(pixel_values)):
            raise InputError(
                f"pixel_values must have the shape (images, channels, height, width) and image_sizes one "
                f"(height, width) for each, got {tuple(pixel_values.shape)} and {image_sizes!r}."
            )
        self._pixels = pixel_values
        area = max(1, int(pixel_values.shape[-1] * pixel_values.shape[-2]))
        group = max(1, PIXELS_AT_ONCE // area)
        self._features: list[Tensor] = []
        for start in range(0, len(pixel_values), group):
            sizes = None if image_sizes is None else image_sizes[start : start + group]
            pixels = pixel_values[start : start + group].to(model.device)
            self._features.extend(model.encode_images(pixels, sizes))
        self._ends = torch.tensor([len(f) for f in self._features], dtype=torch.long).cumsum(0).tolist()

    @property
    def total(self) -> int:
        """Number of features of all images."""
        return int(self._ends[-1]) if self._ends else 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Return features start … stop-1 of all images, (stop-start, D)."""
        parts = []
        for features, end in zip(self._features, self._ends, strict=True):
            begin = end - len(features)
            if begin < stop and start < end:
                parts.append(features[max(0, start - begin) : stop - begin])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def digest(self, start: int, stop: int) -> bytes:
        """Return a fingerprint of the images with features start … stop-1."""
        fingerprint = hashlib.blake2b(digest_size=16)
        for index, end in enumerate(self._ends):
            if end - len(self._features[index]) < stop and start < end:
                pixels = self._pixels[index].detach().to(device="cpu", dtype=torch.float32)
                fingerprint.update(pixels.contiguous().numpy().tobytes())
        return fingerprint.digest()
