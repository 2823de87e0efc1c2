"""Windows of streamed data, read ahead by Ray's tasks: in processes beside the one that trains.

What is read and in which order is decided before (`fmoe.data.streamed`); here it is done. Ray Data
would do the same, but its executor lives in the process that trains, and spins there as soon as it
has read as much as it may (benchmarks/LOG.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fmoe.data.readers import Arrays
from fmoe.data.shards import Rows
from fmoe.data.streamed import Read
from fmoe.on_ray.tasks import own_error

AT_ONCE = 2
"""Windows ahead of the one in use."""


def window(read: Read, wanted: Rows) -> Arrays:
    return read(wanted)


@dataclass(frozen=True)
class OnRay:
    """node: on which it is read as long as that is there; None: on any. Raises what reading
    raises."""

    node: str | None = None

    def __call__(self, read: Read, wanted: Sequence[Rows]) -> Iterator[Arrays]:
        where = "SPREAD"
        if self.node is not None:
            where = NodeAffinitySchedulingStrategy(self.node, soft=True)
        # workers of Ray Train hold all CPUs of a laptop, so reading asks for none
        task = ray.remote(num_cpus=0, scheduling_strategy=where)(window)
        given = ray.put(read)
        coming = (task.remote(given, rows) for rows in wanted)
        ahead = deque(islice(coming, AT_ONCE))
        while ahead:
            with own_error():
                found = ray.get(ahead.popleft())
            ahead.extend(islice(coming, 1))
            yield found
