"""Placement groups that a dead Train controller has left behind.

Ray frees them with the job. It has a cleaner for controllers that are killed, which asks the
dashboard and so does nothing without one; and a worker that dies while its training function is
being started ends the controller with its placement group kept (Ray 2.60, worker_group.py: that
`ray.get` stands outside of the `try`). The next try would wait for those CPUs for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.state import state
from ray._raylet import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

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
    found = _left_behind()
    for group in found:
        remove_placement_group(PlacementGroup(PlacementGroupID(group)))
    return len(found)


def _left_behind() -> list[bytes]:
    """Of this job, not removed, and made by an actor that is dead."""
    job = ray.get_runtime_context().get_job_id()
    removed = gcs_pb2.PlacementGroupTableData.REMOVED
    tables = state._connect_and_get_accessor().get_placement_group_table()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(table) for table in tables]
    return [
        group.placement_group_id
        for group in groups
        if group.creator_job_id.hex() == job
        and group.creator_actor_id.strip(b"\xff")  # none: the driver has made it
        and group.creator_actor_dead
        and group.state != removed
    ]
