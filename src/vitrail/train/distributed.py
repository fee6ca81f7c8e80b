"""Several processes that train one model together: each has its own batches, all take the same step.

On few slow cores this beats threads inside one process: they meet once a step, not once an operation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class Peers:
    """This process's place among `count`; with a count of one nothing is ever exchanged."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, rank: int, count: int, meeting: str) -> Peers:
        """Meet the other processes at a URL such as file:///tmp/x (the file must not exist) or tcp://localhost:29500."""
        if count > 1:
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
        return cls(rank, count)

    def average(self, parameters: Iterable[nn.Parameter], stop: bool) -> bool:
        """Replace every gradient by its mean over all processes; True when any of them was asked to stop."""
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
        """Return when all processes are here."""
        if self.count > 1:
            dist.barrier()
