"""What runs in a trial: experts from the store, then the joint phase, an epoch a report."""

from __future__ import annotations

import os
import queue
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune

from fmoe.config import Config
from fmoe.data.facts import Identity
from fmoe.errors import NonFiniteLoss, UserError
from fmoe.numerics.worker import Worker
from fmoe.on_ray import pool, train
from fmoe.on_ray.session import Resources
from fmoe.on_ray.tasks import Event
from fmoe.on_ray.workers import Workers
from fmoe.storage.checkpoint import Checkpoint, Checkpoints
from fmoe.storage.folder import Folder
from fmoe.training import joint
from fmoe.training.expert_store import ExpertStore

EXCHANGE = "exchange"  # the key of what trials take over from each other


@dataclass(frozen=True)
class TrialInputs:
    """What all trials of a study share. shared: the reference of the data in the object store.

    exchange: PBT, whose trials go on from each other's weights.
    """

    shared: Any
    data: Identity
    store: Folder
    trials: Folder
    resources: Resources
    workers: int
    exchange: bool

    def run(self, number: int) -> Folder:
        return self.trials / f"{number:04d}"


def alone(given: dict[str, Any], inputs: TrialInputs) -> None:
    """A trial of one worker: everything in this process, which Tune uses for the next one too."""
    asked = given["asked"]
    config, run = Config.model_validate_json(asked["config"]), inputs.run(asked["number"])
    data, store = ray.get(inputs.shared).data(), ExpertStore(inputs.store)
    worker = Worker(device=inputs.resources.device())
    experts: dict[str, float] = {}
    try:
        start = time.perf_counter()
        experts |= summary(store.obtain_all(config, data, worker=worker))
        experts["seconds"] = time.perf_counter() - start
        kept = joint.checkpoints(run, config, data.identity)
        after = adopt(kept) if inputs.exchange else -1
        last = config.joint.epochs - 1
        came: list[dict[str, float]] = []
        adopted = {**asked, "history": came} if "change" in asked else None
        for epoch in joint.joint_epochs(config, data, store, run, worker=worker):
            if epoch.index <= after and epoch.index != last:
                came.append(epoch.metrics)
                continue
            # a resumed trial goes through epochs again whose weights are no longer kept
            there = inputs.exchange and epoch.index in kept.epochs()
            offer = kept.load(epoch.index) if there else None
            report(epoch.index, epoch.metrics, experts, offer, adopted)
    except (NonFiniteLoss, UserError) as error:
        # told and not raised: another try would end the same
        report_failure(error, experts)


def adopt(kept: Checkpoints) -> int:
    """Puts the weights that Tune has for this trial in the place of its own; gives their epoch.

    -1 where it has none.
    """
    given = tune.get_checkpoint()
    if given is None:
        return -1
    with given.as_directory() as folder:
        checkpoint = Checkpoints(Folder.at(folder), EXCHANGE).latest()
    assert checkpoint is not None
    kept.folder.delete()
    # of what differs in kind or shape from this trial's, nothing but the weights goes on
    kept.save(replace(checkpoint, adopted=True), checkpoint.epoch)
    return checkpoint.epoch


def together(given: dict[str, Any], inputs: TrialInputs) -> None:
    """A trial of several workers: a Ray Train run of its own, started from here."""
    asked = given["asked"]
    config = Config.model_validate_json(asked["config"])
    store = ExpertStore(inputs.store)
    heard: queue.Queue[Event | BaseException | None] = queue.Queue()
    start = time.perf_counter()
    manifests = pool.fill(
        config, inputs.shared, inputs.data, store, inputs.resources.gpus, lambda _: None
    )
    experts = summary(manifests)
    experts["seconds"] = time.perf_counter() - start

    def fit() -> None:
        try:
            train.fit(
                config,
                inputs.shared,
                store,
                inputs.run(asked["number"]),
                workers=Workers(inputs.workers, inputs.workers),
                resources=inputs.resources,
                listener=heard.put,
            )
            heard.put(None)
        except BaseException as error:  # noqa: BLE001 - raised where Tune hears of it
            heard.put(error)

    # Tune wants its reports from this thread
    threading.Thread(target=fit, daemon=True).start()
    reported: set[int] = set()
    while (event := heard.get()) is not None:
        if isinstance(event, NonFiniteLoss | UserError):
            report_failure(event, experts)
            return
        if isinstance(event, BaseException):
            raise event
        if event["kind"] == "epoch" and event["epoch"] not in reported:
            reported.add(event["epoch"])
            report(event["epoch"], event["metrics"], experts)


def report(
    epoch: int,
    metrics: dict[str, float],
    experts: dict[str, float],
    offer: Checkpoint | None = None,
    adopted: dict[str, Any] | None = None,
) -> None:
    """offer: what other trials may take over. adopted: what this one was told when it did, and the
    history that came with the weights.

    Only the trial itself knows that: Tune asks the giver for its weights while it trains on, and
    changes a trial's config before it has heard the last of the old one.
    """
    told = {
        **metrics,
        "epoch": epoch,
        "epochs": epoch + 1,
        "history": metrics,
        "adopted": adopted,
        "experts": experts,
        "process": process(),
    }
    if offer is None:
        tune.report(told)
        return
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(Folder.at(folder), EXCHANGE).save(offer, epoch)
        tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))


def report_failure(error: NonFiniteLoss | UserError, experts: dict[str, float]) -> None:
    told = {"error": f"{type(error).__name__}: {error}", "process": process()}
    tune.report({**told, "experts": experts})


def process() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def summary(manifests: list[dict[str, Any]]) -> dict[str, float]:
    """How many experts were trained and found, and the seconds that finding them saved."""
    trained = [manifest for manifest in manifests if manifest["trained"]]
    reused = [manifest for manifest in manifests if not manifest["trained"]]
    return {
        "trained": len(trained),
        "found": len(reused),
        "seconds_trained": sum(manifest["seconds"] for manifest in trained),
        "seconds_saved": sum(manifest["seconds"] for manifest in reused),
    }
