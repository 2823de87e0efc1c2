"""What the driver hears of its workers: events on the way, results at the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]
Listener = Callable[[Event], None]


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Mailbox:
    """Events of the workers, until the driver fetches them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def put(self, event: Event) -> None:
        self.events.append(event)

    def drain(self) -> list[Event]:
        events, self.events = self.events, []
        return events


@contextmanager
def mailbox(listener: Listener, interval: float = 1.0) -> Iterator[Any]:
    """A mailbox whose events are handed to `listener` while the block runs, the last at its end."""
    # on this process's node: no other node's loss takes events with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    box = Mailbox.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    stop = threading.Event()

    def deliver() -> None:
        for event in ray.get(box.drain.remote()):
            listener(event)

    def loop() -> None:
        while not stop.wait(interval):
            deliver()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield box
        stop.set()
        thread.join()
        deliver()
    finally:
        stop.set()
        thread.join(timeout=5)
        ray.kill(box)


@contextmanager
def own_error() -> Iterator[None]:
    """A task's own error is raised as it was.

    Other tasks end with the session: `ray.cancel` while a task finishes aborts this process (Ray
    2.60, task_manager.cc), and its MLflow run stays RUNNING.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, Exception) else error) from None


def results(tasks: Sequence[Any]) -> list[Any]:
    """The tasks' results in order; a failure is raised as soon as it is known."""
    pending = list(tasks)
    with own_error():
        while pending:
            done, pending = ray.wait(pending)
            ray.get(done)
        return list(ray.get(list(tasks)))
