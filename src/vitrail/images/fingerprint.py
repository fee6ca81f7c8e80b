"""Fingerprint of a prepared image: a digest of its pixels, the key of cached data for it."""

import hashlib

import torch
from torch import Tensor


def fingerprint(pixels: Tensor) -> bytes:
    """Return the SHA-256 digest of a prepared image (3, H, W): its shape, its dtype and every value."""
    plain = pixels.detach().to("cpu").contiguous()
    name = hashlib.sha256(f"{tuple(plain.shape)} {plain.dtype} ".encode("ascii"))
    name.update(plain.view(torch.uint8).numpy().tobytes())
    return name.digest()
