r"""What a death costs with checkpoints inside of epochs, and what they cost themselves.

    python -m benchmarks.deaths --data-dir DATA                # ten kills; three rounds of training

Kills: `fmoe train cifar10-small-branched` with two workers and `checkpoint.minutes: 0.2`; a worker,
Ray Train's controller and the driver are killed in turn, at random moments. Lost is the time since
the newest checkpoint was written, or since the joint phase went on, if that is less (its workers'
start comes to it); nothing where it had not gone on yet. The weights are compared with those of a
run that nobody disturbed. Cost: the same training in one process, in turns with such checkpoints
and without. Result: benchmarks/results/deaths.json.
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
TOLD = ("same_digest", "most_seconds_lost")
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


def newest(joint: Path) -> float:
    """When the newest whole checkpoint was written."""
    return max((file.stat().st_mtime for file in joint.glob("*/manifest.json")), default=0.0)


class Watched:
    """The log of a run: when the joint phase last went on."""

    def __init__(self, log: Path):
        self.log, self.seen, self.went_on = log, 0, time.time()

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            times = self.log.read_text().count("joint  2 workers") if self.log.exists() else 0
            if times > self.seen:
                self.seen, self.went_on = times, time.time()
            time.sleep(0.1)

    def lost(self, joint: Path, tries: int) -> float:
        """tries: how often the joint phase has been begun anew."""
        if self.seen < tries:
            return 0.0
        return time.time() - max(newest(joint), self.went_on)


def kills(home: Path, given: argparse.Namespace) -> dict[str, Any]:
    whole = answer(start(home, "undisturbed", given))
    moments, found = random.Random(given.seed), list[dict[str, Any]]()
    joint, driver = home / "runs/killed/joint", start(home, "killed", given)
    watched = Watched(home / "killed.log")
    while len(found) < given.kills:
        watched.wait(moments.uniform(5, 40))
        what, lost = VICTIMS[len(found) % len(VICTIMS)], watched.lost(joint, len(found) + 1)
        if driver.poll() is not None:
            raise SystemExit("too short a training for so many kills: --set joint.epochs=4")
        if not kill(what, driver):
            continue
        found.append({"killed": what, "seconds_lost": round(lost, 1)})
        print(found[-1], flush=True)
        if what == "driver":
            driver = start(home, "killed", given)
    result = answer(driver)
    return {
        "kills": found,
        "same_digest": result["digest"] == whole["digest"],
        "most_seconds_lost": max(one["seconds_lost"] for one in found),
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
    known = measure.path("deaths", "json")
    found: dict[str, Any] = {"minutes": MINUTES}
    if known.exists():  # of a call that asked for the other part
        before = json.loads(known.read_text())
        found |= {key: before[key] for key in ("cost", "kills", *TOLD) if key in before}
    if given.rounds:
        found["cost"] = cost(given)
    if given.kills:
        with tempfile.TemporaryDirectory() as home:
            found |= kills(Path(home), given)
    measure.write("deaths", found)


if __name__ == "__main__":
    main()
