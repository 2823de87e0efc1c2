"""The expert store filled by Ray tasks, one expert a task."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

from fmoe.config import Config
from fmoe.data.facts import Identity
from fmoe.numerics.worker import Worker
from fmoe.on_ray.session import Resources
from fmoe.on_ray.shared_data import SharedData
from fmoe.on_ray.tasks import Listener, mailbox, results
from fmoe.storage.folder import Folder
from fmoe.training import Epoch
from fmoe.training.expert_store import ExpertStore, expert_key

PROGRESS_SECONDS = 0.5
LOGGER = logging.getLogger("fmoe")


class Reporter(logging.Handler):
    """Sends a worker's progress to the mailbox, at most twice a second, and fmoe's warnings."""

    def __init__(self, box: Any, **about: Any):
        super().__init__(logging.WARNING)
        self.box, self.about, self.last = box, about, 0.0
        for handler in list(LOGGER.handlers):
            LOGGER.removeHandler(handler)  # an earlier task's of this process
        LOGGER.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.box.put.remote({"kind": "notice", "text": record.getMessage(), **self.about})

    def progress(self, epoch: int, step: int, steps: int) -> None:
        now = time.monotonic()
        if step == steps or now - self.last > PROGRESS_SECONDS:
            self.last = now
            self.box.put.remote({"kind": "step", "at": epoch + step / steps, **self.about})

    def start(self, workers: int, peers: int) -> None:
        """peers: how many of them share the experts."""
        event = {"kind": "start", "workers": workers, "peers": peers}
        self.box.put.remote({**event, **self.about})

    def epoch(self, epoch: Epoch) -> None:
        event = {"kind": "epoch", "epoch": epoch.index, "metrics": epoch.metrics}
        self.box.put.remote({**event, "best": epoch.best, **self.about})


def train_expert(
    shared: SharedData,
    tree: dict[str, Any],
    member: tuple[str, int],
    store: Folder,
    resources: Resources,
    box: Any,
) -> dict[str, Any]:
    reporter = Reporter(box, phase="pool", member=list(member))
    return ExpertStore(store).obtain(
        Config.model_validate(tree),
        member,
        shared.data(),
        worker=Worker(device=resources.device()),
        progress=reporter.progress,
        on_epoch=reporter.epoch,
    )


def fill(
    config: Config,
    shared: Any,
    data: Identity,
    store: ExpertStore,
    gpus: float,
    listener: Listener,
) -> list[dict[str, Any]]:
    """The manifests of all that are trained apart, in order; missing ones are trained.

    shared: the reference of a `SharedData` in the object store; data: of the same. One CPU an
    expert: as many are trained at once as the cluster has CPUs (or GPUs).
    """
    members = config.experts.pretrained
    manifests = {
        member: {**manifest, "trained": False}
        for member in members
        if (manifest := store.find(expert_key(config, member, data)))
    }
    missing = [member for member in members if member not in manifests]
    manifests |= zip(missing, _train(config, missing, shared, store, gpus, listener), strict=True)
    return [manifests[member] for member in members]


def _train(
    config: Config,
    members: list[tuple[str, int]],
    shared: Any,
    store: ExpertStore,
    gpus: float,
    listener: Listener,
) -> list[dict[str, Any]]:
    if not members:
        return []
    resources = Resources(cpus=1, gpus=gpus)
    # DEFAULT: not inside of the placement group of a Tune trial that asks for experts
    # declared with its GPUs: Ray then ends the process with the task, and its GPU memory is free
    train = ray.remote(
        num_cpus=1, num_gpus=gpus, max_retries=3, scheduling_strategy="DEFAULT"
    )(train_expert)  # fmt: skip
    with mailbox(listener) as box:
        tasks = [
            train.remote(shared, config.plain(), member, store.folder, resources, box)
            for member in members
        ]
        return results(tasks)
