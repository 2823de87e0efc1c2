"""Checkpoints inside of an epoch: every so many minutes, and on notice that a worker will end.

Written by a thread beside training. All workers must stop at the same step: they agree on it while
the step before is computed, so that nobody waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import Begun, Checkpoint, Checkpoints

NOT_YET, TIME_IS_UP, NOTICED = 0, 1, 2
Notice = Callable[[], bool]
"""Whether this worker has been told that it will end, such as a spot instance of its preemption."""


def never() -> bool:
    return False


@dataclass
class Keeping:
    """Asked after every step on every worker alike. make: of how far the epoch is, and what has
    been added up of it; on the first worker it is what is kept. minutes: None for on notice alone.
    """

    checkpoints: Checkpoints
    worker: Worker
    make: Callable[[Begun, Tensor], Checkpoint]
    minutes: float | None
    notice: Notice = never
    _last: float = field(default_factory=time.monotonic)
    _asked: tuple[Tensor, Any] | None = None
    _writing: Future[None] | None = None

    def __post_init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if self.worker.processes > 1 and self.worker.device.type != "cpu":
            # a GPU would be waited for
            self._group = dist.new_group(backend="gloo")  # type: ignore[assignment]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._urgent = False

    def due(self) -> bool:
        """Whether to keep a checkpoint of the step that has just been made."""
        wanted = self._wanted()
        if self.worker.processes > 1:
            asked, self._asked = self._asked, self._ask(wanted)
            wanted = self._heard(asked)
        self._urgent = wanted == NOTICED
        return wanted != NOT_YET

    def _wanted(self) -> int:
        if self.notice():
            return NOTICED
        if self.minutes is None or not self.worker.first:
            return NOT_YET
        busy = self._writing is not None and not self._writing.done()
        return TIME_IS_UP if not busy and self._seconds() >= 60 * self.minutes else NOT_YET

    def _seconds(self) -> float:
        return time.monotonic() - self._last

    def _ask(self, wanted: int) -> tuple[Tensor, Any]:
        told = torch.tensor([wanted], dtype=torch.int32)
        return told, dist.all_reduce(told, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _heard(self, asked: tuple[Tensor, Any] | None) -> int:
        if asked is None:
            return NOT_YET
        told, work = asked
        work.wait()
        return int(told)

    def keep(self, begun: Begun, sums: Tensor) -> None:
        """On notice it is waited for."""
        self._last = time.monotonic()
        checkpoint = self.make(begun, sums)
        self.settle()
        if self.worker.first:
            self._writing = self._thread.submit(self.checkpoints.inside_writer(checkpoint))
        if self._urgent:
            self.settle()

    def settle(self) -> None:
        """Waits for what is being written, and raises what came of it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def begin_anew(self) -> None:
        """The minutes, after an epoch's checkpoint."""
        self._last = time.monotonic()
