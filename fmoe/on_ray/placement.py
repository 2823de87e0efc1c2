"""Placement groups that a dead Train controller has left behind.

Ray frees them with the job. Its cleaner for controllers that are killed asks the dashboard and so
does nothing without one: it is not started (`private.lean`). And a worker that dies while its
training function is being started ends the controller with its placement group kept (Ray 2.60,
worker_group.py: that `ray.get` stands outside of the `try`). The next try would wait for those CPUs
for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util.placement_group import remove_placement_group

from fmoe.on_ray import private

SECONDS = 10.0  # for Ray to notice that the controller has gone


def free_left_behind() -> None:
    """Removes them, as soon as Ray knows that their creator is dead."""
    deadline = time.monotonic() + SECONDS
    while not _remove() and time.monotonic() < deadline:
        time.sleep(0.5)


@contextmanager
def sweeping(interval: float = 1.0) -> Iterator[None]:
    """Removes them for as long as the block runs: a pruned trial's Train controller is killed."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(interval):
            _remove()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _remove() -> int:
    found = private.groups_of_dead_actors(ray.get_runtime_context().get_job_id())
    for group in found:
        remove_placement_group(group)
    return len(found)
