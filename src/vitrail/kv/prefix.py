"""Key of a cached block: a digest chain over everything that its contents depend on.

Reserved for the engine; a conversation reuses its prompt through generate/reuse.py.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from hashlib import blake2b
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class PrefixScope:
    """Everything that all blocks of a request share; caches of different scopes never match.

    Attributes:
        version: Vitrail's version.
        weights: identifies the checkpoint and its quantisation.
        adapter: active adapters, "" for none.
        kv_dtype: of the cache.
        activations: dtype or quantisation of the activations.
        prompt_format: how messages became ids.
        salt: per tenant, so that no tenant can probe another's prompts.
    """

    version: str
    weights: str
    adapter: str
    kv_dtype: str
    activations: str
    prompt_format: str
    salt: str = ""

    def digest(self) -> bytes:
        """Return the first link of the chain."""
        hashed = blake2b(digest_size=32)
        for field in astuple(self):
            text = str(field).encode()
            hashed.update(len(text).to_bytes(8, "little") + text)
        return hashed.digest()


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Positions start … stop−1 of a prompt that belong to one image, and the digest of its pixel values.

    Attributes:
        key: images.fingerprint.fingerprint of the pixel values.
        grid: rows and columns of its patches.
    """

    start: int
    stop: int
    key: bytes
    grid: tuple[int, int]

    def _digest(self, start: int, stop: int) -> bytes:
        """Return the digest of the part of the image in positions start … stop−1."""
        numbers = (max(start, self.start) - self.start, min(stop, self.stop) - self.start, *self.grid)
        return b"".join(n.to_bytes(8, "little") for n in (len(self.key), *numbers)) + self.key


def block_keys(
    scope: PrefixScope, ids: Sequence[int], images: Sequence[ImageSpan] = (), *, block: int
) -> list[bytes]:
    """Return a key per full block of `block` positions; equal keys mean equal contents of the block and all before it.

    Args:
        scope: model, adapter, cache dtype, prompt format and tenant.
        ids: of the prompt.
        images: positions and digests of the prompt's images.
        block: positions per block.
    """
    keys, chain = [], scope.digest()
    for start, stop in pairwise(range(0, len(ids) + 1, block)):
        hashed = blake2b(chain, digest_size=32)
        hashed.update(b"".join(index.to_bytes(8, "little", signed=True) for index in ids[start:stop]))
        for image in images:
            if image.start < stop and start < image.stop:
                hashed.update(image._digest(start, stop))
        chain = hashed.digest()
        keys.append(chain)
    return keys
