"""Where the time of training goes, by name: seconds as the host sees them, or a GPU's own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def mark() -> Any:
    event: Any = torch.cuda.Event
    return event(enable_timing=True)


class Clock:
    """Adds up seconds by name until they are `taken`. On a GPU, which runs behind the host, marks
    are put into its queue, and read when it has gone by them."""

    def __init__(self, device: torch.device | None = None):
        self.on_gpu = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._marks: list[tuple[str, Any, Any]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Clock:
        return self  # a copy of a model counts with it

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        if self.on_gpu:
            begin, end = mark(), mark()
            begin.record()
            yield
            end.record()
            self._marks.append((name, begin, end))
            return
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def taken(self) -> dict[str, float]:
        """Seconds by name since the last time."""
        if self._marks:
            torch.cuda.synchronize()
        seconds, marks = self._seconds, self._marks
        self._seconds, self._marks = {}, []
        for name, begin, end in marks:
            seconds[name] = seconds.get(name, 0.0) + begin.elapsed_time(end) / 1000
        return seconds
