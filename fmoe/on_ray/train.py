"""The joint phase under Ray Train: one DDP worker a process, the same epoch generator in each."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from typing import Any, TypeVar

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train import (
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig, TorchTrainer

from fmoe.config import Config
from fmoe.errors import NonFiniteLoss, TrainingFailed, UserError, first_line
from fmoe.numerics.worker import Worker
from fmoe.on_ray import private
from fmoe.on_ray.placement import free_left_behind
from fmoe.on_ray.pool import Reporter
from fmoe.on_ray.session import Resources, grows, this_node
from fmoe.on_ray.tasks import Listener, mailbox
from fmoe.on_ray.workers import Workers
from fmoe.storage.checkpoint import Checkpoints
from fmoe.storage.folder import Folder
from fmoe.training.expert_store import ExpertStore
from fmoe.training.joint import joint_epochs

T = TypeVar("T")
Monitor = Callable[[str], AbstractContextManager[None]]
"""What watches a node, by its name, as long as the block runs."""
MAX_FAILURES = 3
ERRORS = {error.__name__: error for error in (UserError, NonFiniteLoss)}


def worker(settings: dict[str, Any]) -> dict[str, str] | None:
    """One rank of the joint phase. An error that a retry cannot mend is returned, not raised."""
    context = ray.train.get_context()
    device = settings["resources"].device()
    if device.type == "cuda":
        device = ray.train.torch.get_device()  # a node's workers see all of its GPUs
    config = Config.model_validate(settings["config"])
    place = context.get_world_rank(), context.get_world_size()
    worker = Worker.of_mesh(*place, config.shared_by, device)
    reporter, monitor = Reporter(settings["mailbox"], phase="joint"), settings["monitor"]
    node = ray.get_runtime_context().get_node_id()
    # one worker a node, and none where the driver sees for itself
    elsewhere = node != settings["driver_node"] and context.get_local_rank() == 0
    shared = ray.get(settings["shared"])
    if worker.first:
        reporter.start(worker.processes, worker.peers.size)
    with ExitStack() as stack:
        if monitor and elsewhere:
            stack.enter_context(ray.get(monitor)(this_node()))
        return trained(config, settings, shared, worker, reporter)


def trained(
    config: Config, settings: dict[str, Any], shared: Any, worker: Worker, reporter: Reporter
) -> dict[str, str] | None:
    try:
        for epoch in joint_epochs(
            config,
            shared.data(),
            ExpertStore(settings["store"]),
            settings["run"],
            worker=worker,
            progress=reporter.progress if worker.first else None,
            notice=private.told_to_end,
        ):
            if worker.first:
                reporter.epoch(epoch)
            ray.train.report({"epoch": epoch.index, "best": epoch.best, **epoch.metrics})
    except (UserError, NonFiniteLoss) as error:
        return {"error": type(error).__name__, "message": str(error)}
    return None


def fit(
    config: Config,
    shared: Any,
    store: ExpertStore,
    run: Folder,
    *,
    workers: Workers,
    resources: Resources,
    listener: Listener,
    monitor: Monitor | None = None,
) -> None:
    """Trains the mixture on `workers`; checkpoints land in `run`, epochs at `listener`. monitor:
    runs on every other node beside training.

    A lost worker, node or Train controller costs what was done since our own newest checkpoint:
    what is left resumes from there, as often as something is kept in between. Ray is told of
    metrics only, so a run of the same name under another Ray session resumes as well.

    Raises `TrainingFailed`, or the worker's `UserError` or `NonFiniteLoss`.
    """
    if config.parallel == "auto":
        from fmoe.planning.sharing import decided  # no worker and no other run needs it

        config = decided(config, ray.get(shared).data(), workers.most, gpu=bool(resources.gpus))
    failures = 0
    kept = Checkpoints(run / "joint", key="")
    filesystem, path = (run / "ray").resolve()
    with mailbox(listener) as box:
        trainer = TorchTrainer(
            worker,
            train_loop_config={
                "config": config.plain(),
                "shared": shared,
                "store": store.folder,
                "run": run,
                "resources": resources,
                "mailbox": box,
                # by reference: with it come imports of seconds, which most processes do without
                "monitor": ray.put(monitor) if monitor else None,
                "driver_node": ray.get_runtime_context().get_node_id(),
            },
            torch_config=TorchConfig(backend="nccl" if resources.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=(workers.least, workers.most) if workers.elastic else workers.most,
                use_gpu=bool(resources.gpus),
                resources_per_worker={
                    "CPU": resources.cpus,
                    **({"GPU": 1} if resources.gpus else {}),
                },
            ),
            run_config=RunConfig(
                name=f"joint-{uuid.uuid4().hex[:8]}",
                storage_filesystem=filesystem,
                storage_path=path,
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                logging_config=LoggingConfig(log_level=os.environ.get("FMOE_RAY_LOG", "ERROR")),
            ),
        )
        private.without_helpers(trainer, of_a_cluster=grows())
        while True:
            before = kept.newest()
            try:
                outcome = interruptible(trainer.fit).return_value
                break
            except WorkerGroupError as error:  # Ray Train has tried MAX_FAILURES times
                if kept.newest() == before:
                    raise TrainingFailed(f"the joint phase failed: {_gist(error)}") from error
            except (RayActorError, TrainingFailedError) as error:
                # Ray Train's controller is gone, or it lost a worker that it was setting up,
                # which it does not try again
                failures = failures + 1 if kept.newest() == before else 0
                if failures > MAX_FAILURES:
                    raise TrainingFailed(f"the joint phase failed: {_gist(error)}") from error
            free_left_behind()  # here: the error held the controller's handle
    if outcome:
        raise ERRORS[outcome["error"]](outcome["message"])


def interruptible(call: Callable[[], T]) -> T:
    """Runs `call` in a thread of its own, so that Ctrl-C ends the wait for it.

    In the main thread `TorchTrainer.fit` takes SIGINT for itself and returns as if it had failed.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def _gist(error: Exception) -> str:
    """The last line of the error, or of the first worker's where workers failed."""
    failures = getattr(error, "worker_failures", {}) or {0: error}
    return first_line(Exception(str(next(iter(failures.values()))).strip().splitlines()[-1]))
