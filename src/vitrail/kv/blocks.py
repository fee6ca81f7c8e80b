"""BlockAllocator: which blocks of a cache are used, by how many sequences, and which hold a known prefix. No tensors.

A full cache raises CacheFull; generate/runner.py then grows the cache and tries again.
"""

from collections import OrderedDict
from collections.abc import Sequence

from vitrail.errors import CacheFull

BLOCK = 32  # positions of a block


class BlockAllocator:
    """Reference counts and a free list of constant cost per block.

    A block whose content has a key (kv/prefix.py) keeps it when nobody uses the block any more, until the block is
    taken for something else: those that have been free for the longest go first, blocks without a key before them.

    Args:
        blocks: how many there are. block: positions of each, for messages.
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
        """Blocks that no sequence uses."""
        return len(self._free)

    def uses(self, block: int) -> int:
        """How many sequences use a block."""
        return self._uses[block]

    def take(self, count: int, after: int | None = None) -> list[int]:
        """`count` free blocks, each the neighbour of the one before it (the first of `after`) where that is free.

        Raises:
            CacheFull: there are not enough; nothing was changed.
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
        """One more use of each block, also of free ones that match_prefix() found."""
        for block in blocks:
            self._uses[block] += 1
            self._free.pop(block, None)

    def give(self, blocks: Sequence[int]) -> None:
        """One use less of each block; the last ones of a sequence become free first."""
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
        """Let match_prefix() find full blocks by the keys of their contents; a key that is known keeps its block."""
        for block, key in zip(blocks, keys, strict=False):
            if key not in self._cached:
                self.unregister(block)
                self._keys[block], self._cached[key] = key, block

    def unregister(self, block: int) -> None:
        """Forget a block's key: its content is about to change."""
        key = self._keys.pop(block, None)
        if key is not None:
            del self._cached[key]
            if block in self._free:
                self._free.move_to_end(block, last=False)

    def match_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the longest known prefix of `keys`; they are not taken: share() does that."""
        found = []
        for key in keys:
            if key not in self._cached:
                break
            found.append(self._cached[key])
        return found
