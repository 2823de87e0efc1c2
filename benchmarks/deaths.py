r"""What a death costs with checkpoints inside of epochs, and what they cost themselves.

    python -m benchmarks.deaths --data-dir DATA                # ten kills; three rounds of training

Kills: `fmoe train cifar10-small-branched` with two workers and `checkpoint.minutes: 0.2`; a worker,
Ray Train's controller and the driver are killed in turn, at random moments of the joint phase. Lost
is the time since the newest checkpoint was written (the write's own time comes to it). The weights
are compared with those of a run that nobody disturbed. Cost: the same training in one process, in
turns with such checkpoints and without. Result: benchmarks/results/deaths.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks import measure
from fmoe import assembly, config, data
from fmoe.config import Config
from fmoe.storage.checkpoint import Checkpoints
from fmoe.storage.folder import Folder
from fmoe.training import Training, epochs

MINUTES = 0.2
SETTINGS = ["joint.epochs=2", "joint.sizes=[]", f"checkpoint.minutes={MINUTES}"]
VICTIMS = ("worker", "controller", "driver")
TITLES = {"worker": "ray::RayTrainWorker", "controller": "ray::TrainController"}


def start(home: Path, name: str, given: argparse.Namespace) -> subprocess.Popen[str]:
    sets = [part for one in [*SETTINGS, *given.sets] for part in ("--set", one)]
    command = "train", "cifar10-small-branched", "--workers", "2", "--name", name, "--json", *sets
    with (home / f"{name}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *command, "--data-dir", given.data_dir],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "FMOE_HOME": str(home)},
        )


def answer(driver: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = driver.communicate()
    if driver.returncode:
        raise SystemExit(f"fmoe train ended with {driver.returncode}")
    return dict(json.loads(out.splitlines()[-1]))


def kill(what: str, driver: subprocess.Popen[str]) -> bool:
    """Whether there was such a process."""
    if what == "driver":
        family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
        for process in family:  # Ray's own die with it; waiting for that would blur the next moment
            process.kill()
        driver.wait()
        return True
    for process in psutil.Process(driver.pid).children(recursive=True):
        if TITLES[what] in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)
            return True
    return False


def newest(joint: Path) -> float | None:
    """When the newest whole checkpoint was written."""
    times = [manifest.stat().st_mtime for manifest in joint.glob("*/manifest.json")]
    return max(times, default=None)


def kills(home: Path, given: argparse.Namespace) -> dict[str, Any]:
    whole = answer(start(home, "undisturbed", given))
    moments, found = random.Random(given.seed), list[dict[str, Any]]()
    joint, driver = home / "runs/killed/joint", start(home, "killed", given)
    tries = 0
    while len(found) < given.kills and driver.poll() is None:
        time.sleep(moments.uniform(5, 30))
        what, written = VICTIMS[len(found) % len(VICTIMS)], newest(joint)
        lost = None if written is None else time.time() - written
        if driver.poll() is not None or written is None or not kill(what, driver):
            tries += 1
            if tries > 10 * given.kills:
                raise SystemExit("nothing to kill: too short a training for so many kills")
            continue
        found.append({"killed": what, "seconds_since_checkpoint": round(lost or 0.0, 1)})
        print(found[-1], flush=True)
        if what == "driver":
            driver = start(home, "killed", given)
    result = answer(driver)
    return {
        "kills": found,
        "same_digest": result["digest"] == whole["digest"],
        "most_seconds_lost": max(one["seconds_since_checkpoint"] for one in found),
    }


def seconds(chosen: Config, train: Any, val: Any, minutes: float | None, folder: Path) -> float:
    joint = chosen.joint
    of = Training(joint, joint.attack, train, val, chosen.data.augment, 0, chosen.numerics)
    kept = Checkpoints(Folder.at(folder), "key")
    (epoch,) = epochs(assembly.seeded_mixture(chosen), of, checkpoints=kept, minutes=minutes)
    return epoch.metrics["train_seconds"]


def cost(given: argparse.Namespace) -> dict[str, Any]:
    chosen = config.load("cifar10-small-branched", ["joint.epochs=1", "joint.sizes=[]"])
    loaded = data.load("cifar10", given.data_dir, val_images=500)
    took: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(given.rounds):
        for name, minutes in (("without", None), ("with", MINUTES)):
            with tempfile.TemporaryDirectory() as folder:
                one = seconds(chosen, loaded.train, loaded.val, minutes, Path(folder))
            took[name].append(round(one, 2))
            print(name, one, flush=True)
    ratio = statistics.median(took["with"]) / statistics.median(took["without"])
    return {"train_seconds": took, "ratio": round(ratio, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE")
    given = parser.parse_args()
    found: dict[str, Any] = {"minutes": MINUTES}
    if given.rounds:
        found["cost"] = cost(given)
    if given.kills:
        with tempfile.TemporaryDirectory() as home:
            found |= kills(Path(home), given)
    measure.write("deaths", found)


if __name__ == "__main__":
    main()
