"""BlockAllocator: reference counts of a cache's blocks, free list, and the prefix keys of their contents.

A full cache raises CacheFull; generate/runner.py then grows the cache and retries.
"""

from collections import OrderedDict
from collections.abc import Sequence

from vitrail.errors import CacheFull

BLOCK = 32  # positions per block


class BlockAllocator:
    """Reference counts and a free list, O(1) per block.

    A free block keeps the key of its content (kv/prefix.py) until it is reallocated: blocks without a key are taken first,
    then those that have been free the longest.

    Args:
        blocks: number of blocks.
        block: positions per block, for messages.
    """

    def __init__(self, blocks: int, block: int) -> None:
        self.block = block
        self._uses = [0] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self._keys: dict[int, bytes] = {}
        self._cached: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._uses)

    @property
    def free(self) -> int:
        """Number of unused blocks."""
        return len(self._free)

    def uses(self, block: int) -> int:
        """Return the reference count of a block."""
        return self._uses[block]

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Allocate `count` blocks, each adjacent to the previous one (the first to `after`) where that block is free.

        Raises:
            CacheFull: too few free blocks; nothing was changed.
        """
        if count > len(self._free):
            raise CacheFull(
                f"the cache needs {count} more blocks of {self.block} positions and has {len(self._free)} free; "
                "make it larger or use a shorter context."
            )
        taken: list[int] = []
        for _ in range(count):
            if after is not None and after + 1 in self._free:
                after += 1
                del self._free[after]
            else:
                after, _ = self._free.popitem(last=False)
            self.unregister(after)
            self._uses[after] = 1
            taken.append(after)
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """Increment the reference count of each block, including free ones found by match_prefix()."""
        for block in blocks:
            self._uses[block] += 1
            self._free.pop(block, None)

    def give(self, blocks: Sequence[int]) -> None:
        """Decrement the reference count of each block; the last blocks of a sequence are freed first."""
        for block in reversed(blocks):
            self._uses[block] -= 1
            if not self._uses[block]:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._keys)

    def grow(self, blocks: int) -> None:
        """Add free blocks."""
        for block in reversed(range(len(self._uses), len(self._uses) + blocks)):
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        self._uses.extend([0] * blocks)

    def register(self, blocks: Sequence[int], keys: Sequence[bytes]) -> None:
        """Enter full blocks under the keys of their contents for match_prefix(); a known key keeps its block."""
        for block, key in zip(blocks, keys, strict=False):
            if key not in self._cached:
                self.unregister(block)
                self._keys[block], self._cached[key] = key, block

    def unregister(self, block: int) -> None:
        """Remove a block's key before its content changes."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._cached[key]
            if block in self._free:
                self._free.move_to_end(block, last=False)

    def match_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest known prefix of `keys`, without allocating them (share() does)."""
        found = []
        for key in keys:
            if key not in self._cached:
                break
            found.append(self._cached[key])
        return found
