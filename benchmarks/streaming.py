r"""What streaming costs: an epoch's time beside one in memory, and memory as a data set grows.

    python -m benchmarks.streaming --data-dir DATA    # 30 minutes on two cores, nothing beside it

Time: the joint phase under Ray Train on the same images of CIFAR-10, in memory and streamed in
turns, of one network and of nine branches; each run's first epoch is left out and told apart (it
holds the start of what reads). Memory: a generated set of 64 x 64 images (JPEG in Parquet) of
10,000 to 100,000 is prepared and trained on, streamed and in memory; the most that all processes of
the command have at once (PSS, so that what they share counts once). A part that is not asked for
stays as it was. Result: benchmarks/results/streaming.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import measure
from fmoe import config, data
from fmoe.config import Config
from fmoe.data import Images, TrainingData
from fmoe.on_ray import pool, train
from fmoe.on_ray.session import Resources, session
from fmoe.on_ray.shared_data import SharedData
from fmoe.on_ray.tasks import Event
from fmoe.on_ray.workers import Workers
from fmoe.storage.folder import Folder
from fmoe.training.expert_store import ExpertStore

EPOCHS = 3
ARMS = {
    "one network": ("cifar10-small-single", 12_000, (1, 2)),
    "nine branches": ("cifar10-small-branched", 12_000, (2,)),
}
"""Recipe, images of an epoch, workers."""
SIZES = (10_000, 30_000, 100_000)
SIDE, CLASSES = 64, 10
TINY = [
    "data.val_images=500",
    "experts.backbone.width=4",
    "experts.roles={benign: {count: 2, attack: {kind: clean}}}",
    "experts.start=fresh",
    "joint.epochs=1",
    "joint.batch_size=256",
    "joint.attack={kind: clean}",
    "joint.validation.images=100",
    "joint.guard=false",
    "gate={kind: conv, width: 4}",
    "evaluate.images=100",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="with cifar10; or FMOE_DATA_DIR")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--parts", default="time,memory")
    given = parser.parse_args()
    kept = measure.path("streaming", "json")
    result: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    result = {part: result[part] for part in ("time", "memory") if part in result}
    if "time" in given.parts:
        result["time"] = times(given.data_dir, given.rounds)
    if "memory" in given.parts:
        with tempfile.TemporaryDirectory() as aside:
            sizes = list(map(int, given.sizes.split(",")))
            result["memory"] = [grown(Path(aside), images) for images in sizes]
    measure.write("streaming", result)


def times(folder: str | None, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as aside, session(2, 500 << 20):
        place = Folder.at(aside)
        for title, (recipe, count, numbers) in ARMS.items():
            settings = config.load(recipe, [f"joint.epochs={EPOCHS}", "joint.sizes=[]"])
            for workers in numbers:
                found[f"{title}, {workers} worker{'s' * (workers > 1)}"] = compared(
                    settings, place / f"{recipe}-{workers}", folder, count, workers, rounds
                )
    return found


def compared(
    settings: Config, place: Folder, folder: str | None, count: int, workers: int, rounds: int
) -> dict[str, float]:
    """Mean seconds of an epoch, and those of the first one."""
    epochs: dict[str, list[float]] = {"held": [], "streamed": []}
    waited: dict[str, list[float]] = {"held": [], "streamed": []}
    first: dict[str, list[float]] = {"held": [], "streamed": []}
    for number in range(rounds):
        for name in epochs:
            images = data.load_training(
                "cifar10",
                folder,
                train_images=count,
                stream=name == "streamed",
                copies=place / "copies",
            )
            start, *rest = under_ray(settings, images, place / f"{name}-{number}", workers)
            first[name].append(start["train_seconds"])
            epochs[name] += [epoch["train_seconds"] for epoch in rest]
            waited[name] += [epoch["data_seconds"] for epoch in rest]
    told = {name: statistics.mean(seconds) for name, seconds in epochs.items()}
    result = {
        "images": float(count),
        **{f"{name}_seconds": round(value, 3) for name, value in told.items()},
        "ratio": round(told["streamed"] / told["held"], 3),
        **{f"{name}_data_seconds": round(statistics.mean(v), 3) for name, v in waited.items()},
        **{f"{name}_first_seconds": round(statistics.mean(v), 3) for name, v in first.items()},
    }
    print(place.name, json.dumps(result), flush=True)
    return result


def under_ray(
    settings: Config, images: TrainingData[Images], run: Folder, workers: int
) -> list[dict[str, float]]:
    """Each epoch's metrics."""
    heard: list[Event] = []
    store = ExpertStore(run / "experts")
    shared = SharedData.of(images).put()
    pool.fill(settings, shared, images.identity, store, 0, lambda event: None)
    train.fit(
        settings,
        shared,
        store,
        run,
        workers=Workers(workers, workers),
        resources=Resources.per_worker(workers, gpu=False),
        listener=heard.append,
    )
    return [event["metrics"] for event in heard if event["kind"] == "epoch"]


def grown(aside: Path, images: int) -> dict[str, Any]:
    name = f"grown-{images}"
    home = aside / "home"
    generate(aside / f"{name}.parquet", images)
    result: dict[str, Any] = {"images": images, "pixels_mib": images * 3 * SIDE**2 >> 20}
    result["prepare"] = command(home, "data", "prepare", f"{aside / name}.parquet", "--name", name)
    for way in ("true", "false"):
        sets = [f"data.name={name}", f"data.stream={way}", *TINY]
        arguments = [part for one in sets for part in ("--set", one)]
        key = "streamed" if way == "true" else "held"
        result[key] = command(
            home, "train", "cifar10-small", "--workers", "1", "--name", f"{name}-{way}", *arguments
        )
    print(json.dumps(result), flush=True)
    return result


def generate(file: Path, images: int) -> None:
    """Pictures with structure: JPEG makes little of noise."""
    rng = np.random.default_rng(images)
    cells = []
    for number in range(images):
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        coarse[number % 6, :, 0] = 25 * (number % CLASSES)
        picture = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        cells.append({"bytes": stream.getvalue(), "path": None})
    labels = pa.array([number % CLASSES for number in range(images)], pa.int64())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(
        pa.table({"image": pa.array(cells, kind), "label": labels}), file, row_group_size=1000
    )


def command(home: Path, *arguments: str) -> dict[str, float]:
    """The most that it has at once, and how long it takes."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments, "--json"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "FMOE_HOME": str(home)},
    )
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(1.0):  # it costs a tenth of a second
            most[0] = max(most[0], held(process.pid))

    watching = threading.Thread(target=watch)
    watching.start()
    code = process.wait()
    done.set()
    watching.join()
    if code:
        raise SystemExit(f"fmoe {' '.join(arguments)} failed")
    return {"mib": round(most[0]), "seconds": round(time.perf_counter() - begin, 1)}


def held(pid: int) -> float:
    """MiB of a process and all that it has started."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += one.memory_full_info().pss
    return total / 2**20


if __name__ == "__main__":
    main()
