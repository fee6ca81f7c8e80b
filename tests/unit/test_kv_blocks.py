"""BlockAllocator against sets and dicts: counts, free blocks, neighbours, and prefixes that stay until a block is taken."""

from __future__ import annotations

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vitrail.errors import CacheFull
from vitrail.kv.blocks import BlockAllocator

KEYS = [bytes([number]) for number in range(6)]


class Comparison(RuleBasedStateMachine):
    """Random calls on an allocator and on a naive model: uses per block, and a key per block."""

    @initialize(blocks=st.integers(1, 8))
    def begin(self, blocks: int) -> None:
        self.allocator = BlockAllocator(blocks, 4)
        self.uses = [0] * blocks
        self.keys: dict[int, bytes] = {}
        self.held: list[list[int]] = []  # blocks of each owner

    def free(self) -> set[int]:
        return {block for block, uses in enumerate(self.uses) if uses == 0}

    @rule(count=st.integers(0, 5), data=st.data())
    def take(self, count: int, data: st.DataObject) -> None:
        after = data.draw(st.none() | st.integers(0, len(self.uses) - 1))
        if count > len(self.free()):
            with pytest.raises(CacheFull, match=f"needs {count} more blocks of 4"):
                self.allocator.take(count, after)
            return
        free, unkeyed = self.free(), self.free() - set(self.keys)
        taken = self.allocator.take(count, after)
        assert len(set(taken)) == count and set(taken) <= free
        for before, block in zip([after, *taken], taken, strict=False):
            neighbour = None if before is None else before + 1
            assert block == neighbour or neighbour not in free
            if block != neighbour and block not in unkeyed:
                assert not unkeyed, "a known prefix went while there were blocks without one"
            free.discard(block)
            unkeyed.discard(block)
        for block in taken:
            self.uses[block] = 1
            self.keys.pop(block, None)
        self.held.append(taken)

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4, unique=True))
    def share_a_prefix(self, keys: list[bytes]) -> None:
        found = self.allocator.match_prefix(keys)
        by_key = {key: block for block, key in self.keys.items()}
        expected = []
        for key in keys:
            if key not in by_key:
                break
            expected.append(by_key[key])
        assert found == expected
        self.allocator.share(found)
        for block in found:
            self.uses[block] += 1
        self.held.append(found)

    @rule(data=st.data())
    def register(self, data: st.DataObject) -> None:
        owned = [blocks for blocks in self.held if blocks]
        if not owned:
            return
        blocks = data.draw(st.sampled_from(owned))
        keys = data.draw(st.lists(st.sampled_from(KEYS), max_size=len(blocks), unique=True))
        self.allocator.register(blocks, keys)
        for block, key in zip(blocks, keys, strict=False):
            if key not in self.keys.values():
                self.keys[block] = key

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        block = data.draw(st.integers(0, len(self.uses) - 1))
        self.allocator.unregister(block)
        self.keys.pop(block, None)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        if not self.held:
            return
        blocks = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.allocator.give(blocks)
        for block in blocks:
            self.uses[block] -= 1

    @rule(blocks=st.integers(1, 2))
    def grow(self, blocks: int) -> None:
        self.allocator.grow(blocks)
        self.uses += [0] * blocks

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "allocator"):
            return
        assert [self.allocator.uses(block) for block in range(len(self.allocator))] == self.uses
        assert self.allocator.free == len(self.free())
        for block, key in self.keys.items():
            assert self.allocator.match_prefix([key]) == [block]
        for key in set(KEYS) - set(self.keys.values()):
            assert self.allocator.match_prefix([key]) == []


TestAgainstSets = Comparison.TestCase
TestAgainstSets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_taken_blocks_are_neighbours_and_the_longest_free_prefix_goes_first() -> None:
    allocator = BlockAllocator(6, 4)
    first = allocator.take(2)
    second = allocator.take(2)
    assert (first, second) == ([0, 1], [2, 3])
    assert allocator.take(1, after=3) == [4]
    allocator.register(first, [b"a", b"b"])
    allocator.register(second, [b"c"])
    allocator.give(first)
    allocator.give(second)
    assert allocator.match_prefix([b"a", b"b", b"x"]) == [0, 1]
    assert sorted(allocator.take(2)) == [3, 5]  # those without a key
    assert allocator.take(1) == [1]  # the tail of the prefix that has been free for the longest
    assert allocator.match_prefix([b"a", b"b"]) == [0]
    assert allocator.match_prefix([b"c"]) == [2]
