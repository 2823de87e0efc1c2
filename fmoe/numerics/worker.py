"""Where a process stands among the workers, and the sums that they exchange."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from fmoe.numerics.clock import Clock
from fmoe.numerics.draw import shard

EXCHANGE = "exchange"


@dataclass(frozen=True)
class Group:
    """Workers that exchange something; of size 1: this one alone. handle: None for all workers."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None
    clock: Clock = field(default_factory=Clock, compare=False, repr=False)
    """Counts what is waited for here, as `exchange`."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Group:
        return self  # a copy of a model is of the same group

    def shares(self, total: int) -> list[int]:
        """How many of `total` each member has."""
        rows = [shard(total, rank, self.size) for rank in range(self.size)]
        return [own.stop - own.start for own in rows]

    def sum_(self, tensor: Tensor) -> Tensor:
        """All members' tensors, added, in the place of each one's own."""
        if self.size > 1:
            with self.clock.on(EXCHANGE):
                dist.all_reduce(tensor, group=self.handle)
        return tensor

    def gathered(self, tensor: Tensor, sizes: list[int], dim: int = 0) -> Tensor:
        """All members' tensors one after the other; sizes: of each one's along `dim`."""
        if self.size == 1:
            return tensor
        own = tensor.movedim(dim, 0)
        padded = own.new_zeros(max(sizes), *own.shape[1:])  # all must be of one size
        padded[: len(own)] = own
        everyone = [torch.empty_like(padded) for _ in sizes]
        with self.clock.on(EXCHANGE):
            dist.all_gather(everyone, padded, group=self.handle)
        parts = [part[:size] for part, size in zip(everyone, sizes, strict=True)]
        return torch.cat(parts).movedim(0, dim)


@dataclass(frozen=True)
class Worker:
    """Where this process stands among the workers, and the device it computes on.

    rank, world_size: among those that share a batch's images and hold the same experts.
    peers: those that have the same images, and share the experts out among them.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    peers: Group = field(default_factory=Group)
    handle: dist.ProcessGroup | None = None
    clock: Clock = field(default_factory=Clock, compare=False, repr=False)

    @classmethod
    def of_mesh(cls, rank: int, workers: int, experts: int, device: torch.device) -> Worker:
        """The worker of this rank of all, in an initialised torch.distributed group.

        experts: how many workers shall share the experts; as many of them do as a number of
        workers that has changed on the way allows.
        """
        size, clock = gcd(workers, experts), Clock(device)
        if size == 1:
            return cls(rank, workers, device, clock=clock)
        mesh = init_device_mesh(
            device.type, (workers // size, size), mesh_dim_names=("data", "expert")
        )
        data, expert = mesh["data"], mesh["expert"]
        peers = Group(expert.get_local_rank(), size, expert.get_group(), clock)
        rank = data.get_local_rank()
        return cls(rank, workers // size, device, peers, data.get_group(), clock)

    @property
    def images(self) -> Group:
        """Those that share a batch's images."""
        return Group(self.rank, self.world_size, self.handle, self.clock)

    @property
    def all(self) -> Group:
        rank = self.rank * self.peers.size + self.peers.rank
        return Group(rank, self.processes, clock=self.clock)

    @property
    def processes(self) -> int:
        """How many workers there are."""
        return self.world_size * self.peers.size

    @property
    def first(self) -> bool:
        return self.all.rank == 0


def reduce_sum(tensor: Tensor, worker: Worker) -> Tensor:
    """The sum over all images, in the place of each worker's own: the same bits for all, also
    where peers differed in rounding."""
    worker.all.sum_(tensor)
    return tensor.div_(worker.peers.size) if worker.peers.size > 1 else tensor
