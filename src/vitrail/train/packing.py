"""Packing of examples into rows without padding or attention between conversations, and the order of examples.

Letters: L packed rows · n target ids · N images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.generate.uncached import run_uncached
from vitrail.train.examples import IGNORED, Example

Prepare = Callable[[list[Any]], "dict[str, Tensor]"]
"""Images → pixel_values (N, 3, H, W) and image_sizes (N, 2)."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Several conversations as packed rows.

    ids, positions (L,); lengths: rows of each conversation; keep (n,): rows that predict a target; targets (n,): the target
    ids. pixel_values, image_sizes: of all images, in order, or None.
    """

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    keep: Tensor
    targets: Tensor
    pixel_values: Tensor | None = None
    image_sizes: Tensor | None = None


def pack(examples: Sequence[Example], prepare: Prepare | None = None) -> Pack:
    """Concatenate conversations. prepare: converts images to pixel values; needed if there are any."""
    lengths = tuple(len(example.ids) for example in examples)
    labels = torch.tensor([label for example in examples for label in (*example.labels[1:], IGNORED)])
    keep = (labels != IGNORED).nonzero().squeeze(1)
    images = [image for example in examples for image in example.images]
    made = prepare(images) if images and prepare is not None else {}
    return Pack(
        ids=torch.tensor([index for example in examples for index in example.ids]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        lengths=lengths,
        keep=keep,
        targets=labels[keep],
        pixel_values=made.get("pixel_values"),
        image_sizes=made.get("image_sizes"),
    )


def loss_sum(model: Any, rows: Pack) -> Tensor:
    """Return the sum of the cross-entropies of all targets, in float32. Logits are computed for these rows only."""
    device = model.device
    features = None
    if rows.pixel_values is not None:
        pixels = rows.pixel_values.to(device=device, dtype=model.dtype)
        features = torch.cat(model.encode_images(pixels, rows.image_sizes))
    hidden = model.embed(rows.ids.to(device), features)
    logits = run_uncached(
        model, hidden, rows.lengths, positions=rows.positions.to(device), logits_indices=rows.keep.to(device)
    )
    return F.cross_entropy(logits.float(), rows.targets.to(logits.device), reduction="sum")


@dataclass(frozen=True, slots=True)
class Room:
    """Limits of one pack: conversations and positions; the first conversation always fits."""

    conversations: int
    positions: int


def in_groups(order: Sequence[int], positions: Sequence[int], room: Room) -> list[list[int]]:
    """Group adjacent examples of `order` within the limits. positions: of every example."""
    groups: list[list[int]] = []
    used = 0
    for index in order:
        full = not groups or len(groups[-1]) >= room.conversations
        if full or used + positions[index] > room.positions:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += positions[index]
    return groups


class Order:
    """Examples of each step, as a function of the seed, so that a run can resume anywhere.

    Every epoch is a new permutation. accumulate: packs per step; an epoch's last step may have fewer.
    """

    def __init__(self, positions: Sequence[int], room: Room, accumulate: int, seed: int) -> None:
        self.positions, self.room, self.accumulate, self.seed = positions, room, accumulate, seed
        self._ends: list[int] = []  # last step of each epoch planned so far
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def steps(self, epochs: float) -> int:
        """Return the number of steps of `epochs` epochs; a fraction of an epoch counts in proportion, at least one step."""
        whole, part = int(epochs), epochs - int(epochs)
        done = self._end(whole - 1)
        return max(1, done + round(part * (self._end(whole) - done)) if part else done)

    def at(self, step: int) -> list[list[int]]:
        """Return the packs of a step, as indices of examples."""
        epoch = self.epoch(step)
        groups = self._groups(epoch)
        begin = (step - self._end(epoch - 1)) * self.accumulate
        return groups[begin : begin + self.accumulate]

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, counted from 0."""
        epoch = 0
        while self._end(epoch) <= step:
            epoch += 1
        return epoch

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            number = len(self._ends)
            steps = -(-len(self._groups(number)) // self.accumulate)
            self._ends.append((self._ends[-1] if self._ends else 0) + steps)
        return self._ends[epoch] if epoch >= 0 else 0

    def _groups(self, epoch: int) -> list[list[int]]:
        if self._epoch[0] != epoch:
            generator = torch.Generator().manual_seed(mixed(self.seed, epoch))
            order = torch.randperm(len(self.positions), generator=generator).tolist()
            self._epoch = (epoch, in_groups(order, self.positions, self.room))
        return self._epoch[1]


def mixed(seed: int, number: int) -> int:
    """Derive the seed of item `number` from a run's seed."""
    return (seed * 6_364_136_223_846_793_005 + number * 1_442_695_040_888_963_407 + 1) % (1 << 63)
