"""The key of a cached block: a digest chain over everything that its contents depend on.

For the engine; a conversation reuses its own prompt by generate/reuse.py.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from hashlib import blake2b
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class PrefixScope:
    """What all blocks of a request share; caches of different scopes never match.

    Attributes:
        version: of Vitrail.
        weights: identifies the checkpoint and its quantisation. adapter: the adapters set, "" for none.
        kv_dtype: of the cache. activations: the dtype or quantisation of what is computed.
        prompt_format: how the ids were made of messages. salt: of a tenant, so that nobody can probe another's prompts.
    """

    version: str
    weights: str
    adapter: str
    kv_dtype: str
    activations: str
    prompt_format: str
    salt: str = ""

    def digest(self) -> bytes:
        """Begins a chain."""
        hashed = blake2b(digest_size=32)
        for field in astuple(self):
            text = str(field).encode()
            hashed.update(len(text).to_bytes(8, "little") + text)
        return hashed.digest()


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Positions start … stop−1 of a prompt that one image fills, and the digest of its prepared pixels.

    key: images.fingerprint.fingerprint of the pixels; grid: rows and columns of its patches.
    """

    start: int
    stop: int
    key: bytes
    grid: tuple[int, int]

    def _digest(self, start: int, stop: int) -> bytes:
        """Of the part of the image that lies in positions start … stop−1."""
        numbers = (max(start, self.start) - self.start, min(stop, self.stop) - self.start, *self.grid)
        return b"".join(n.to_bytes(8, "little") for n in (len(self.key), *numbers)) + self.key


def block_keys(
    scope: PrefixScope, ids: Sequence[int], images: Sequence[ImageSpan] = (), *, block: int
) -> list[bytes]:
    """A key per full block of `block` positions; equal keys mean equal contents of this block and all before it."""
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
