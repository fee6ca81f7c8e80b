"""Data-parallel training in several processes: each has its own batches, all take the same step.

On few slow cores this is faster than threads in one process, as processes synchronise once per step, not per operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class Peers:
    """This process's rank among `count`; with a count of one nothing is exchanged."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, rank: int, count: int, meeting: str) -> Peers:
        """Join the other processes at a URL such as file:///tmp/x (a new file) or tcp://localhost:29500."""
        if count > 1:
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        return cls(rank, count)

    def average(self, parameters: Iterable[nn.Parameter], stop: bool) -> bool:
        """Average every gradient over all processes; return True if any of them received a stop request."""
        if self.count == 1:
            return stop
        grads = [p.grad for p in parameters if p.grad is not None]
        flag = grads[0].new_tensor([float(stop)])
        flat = torch.cat([*(grad.flatten() for grad in grads), flag])
        dist.all_reduce(flat)
        parts = torch.split(flat, [grad.numel() for grad in grads] + [1])
        for grad, part in zip(grads, parts[:-1], strict=True):
            grad.copy_(part.view_as(grad) / self.count)
        return bool(parts[-1].item() > 0)

    def wait(self) -> None:
        """Wait until all processes arrive."""
        if self.count > 1:
            dist.barrier()
