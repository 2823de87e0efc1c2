"""What Ray Train costs: the joint phase's steady epochs in this process, under Ray Train with one
worker, and with two; one thread each. Start-up is told apart.

    python -m benchmarks.ray_overhead --data-dir ~/data  # 8 minutes on two cores, nothing beside it

Recipe `cifar10-small` at width 16 on 768 real images in batches of 256. (At width 8 or on `digits`
a step's time is largely that of its calls, and half a batch takes more than half of it.) Draws are
the same in all three, so epochs are compared by their means; each run's first is left out. The
result goes to benchmarks/results/ray_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import ray
import torch

from benchmarks import measure
from fmoe import config, data
from fmoe.config import Config
from fmoe.data import TrainingData
from fmoe.numerics.worker import Worker
from fmoe.on_ray import pool, train
from fmoe.on_ray.session import Resources, session
from fmoe.on_ray.shared_data import SharedData
from fmoe.on_ray.tasks import Event
from fmoe.on_ray.workers import Workers
from fmoe.storage.folder import Folder
from fmoe.training.expert_store import ExpertStore
from fmoe.training.joint import joint_epochs

ROUNDS, EPOCHS, IMAGES = 2, 3, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="with cifar10; or FMOE_DATA_DIR")
    folder_of_data = parser.parse_args().data_dir
    settings = config.load(
        "cifar10-small",
        [
            f"joint.epochs={EPOCHS}",
            "experts.backbone.width=16",
            "joint.batch_size=256",
            "experts.train.epochs=1",
            "experts.train.validation.images=10",
            "joint.validation.images=10",
        ],
    )
    images = data.load_training("cifar10", folder_of_data, train_images=IMAGES)
    images = replace(images, val=images.val[:100])
    seconds: dict[str, list[float]] = {"in process": [], "1 worker": [], "2 workers": []}
    startup: dict[str, list[float]] = {"1 worker": [], "2 workers": []}
    torch.set_num_threads(1)
    gpus = torch.cuda.device_count()
    counts = (1, 2) if gpus != 1 else (1,)
    with tempfile.TemporaryDirectory() as aside, session(2):
        folder = Folder.at(aside)
        store = ExpertStore(folder / "experts")
        shared = ray.put(SharedData.of(images))
        pool.fill(settings, shared, images.identity, store, min(gpus, 1), lambda event: None)
        for number in range(ROUNDS):
            seconds["in process"] += in_process(
                settings, images, store, folder / f"in-process-{number}"
            )
            for workers in counts:
                name = f"{workers} worker{'s' if workers > 1 else ''}"
                start, epochs = under_ray(
                    settings, shared, store, folder / f"{workers}-{number}", workers
                )
                startup[name].append(start)
                seconds[name] += epochs
    mean = {name: statistics.mean(values) for name, values in seconds.items() if values}
    result = {
        "epoch_seconds": {name: round(value, 3) for name, value in mean.items()},
        "one_worker_over_in_process": round(mean["1 worker"] / mean["in process"], 3),
        "seconds_to_first_step": {
            name: round(statistics.median(values), 1) for name, values in startup.items() if values
        },
        "all_epochs": {name: [round(v, 3) for v in values] for name, values in seconds.items()},
    }
    if "2 workers" in mean:
        ratio = mean["1 worker"] / mean["2 workers"]
        result["two_workers_over_one_throughput"] = round(ratio, 3)
    measure.write("ray_overhead", result)


def in_process(
    settings: Config, images: TrainingData, store: ExpertStore, run: Folder
) -> list[float]:
    worker = Worker(device=measure.device())
    found = list(joint_epochs(settings, images, store, run, worker=worker))
    return [epoch.metrics["train_seconds"] for epoch in found[1:]]


def under_ray(
    settings: Config, shared: Any, store: ExpertStore, run: Folder, workers: int
) -> tuple[float, list[float]]:
    """(seconds from `fit` to the workers' start, seconds of each epoch but the first)."""
    begin, started, epochs = time.perf_counter(), [], []

    def listen(event: Event) -> None:
        if event["kind"] == "start":
            started.append(time.perf_counter() - begin)
        if event["kind"] == "epoch":
            epochs.append(event["metrics"]["train_seconds"])

    train.fit(
        settings,
        shared,
        store,
        run,
        workers=Workers(workers, workers),
        resources=Resources(cpus=1, gpus=int(torch.cuda.is_available())),
        listener=listen,
    )
    return started[0], epochs[1:]


if __name__ == "__main__":
    main()
