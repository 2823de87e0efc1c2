"""Where a process stands among the workers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Worker:
    """Where this process stands among the workers, and the device it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def reduce_sum(tensor: Tensor, worker: Worker) -> Tensor:
    if worker.world_size > 1:
        dist.all_reduce(tensor)
    return tensor
