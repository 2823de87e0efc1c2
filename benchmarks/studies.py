r"""ASHA against FIFO and against random search: the best so far over time, at the same budget.

    python benchmarks/studies.py digits --minutes 3
    python benchmarks/studies.py cifar10-small --minutes 6 --data-dir DATA \
        --set data.train_images=2000

All arms of a seed find the same experts trained: they differ in the search alone. Writes
benchmarks/results/studies-SPACE.json and .png, and prints a table. Nothing else may run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from matplotlib.figure import Figure

from fmoe import data
from fmoe.cpus import usable_cpus
from fmoe.storage.folder import Folder
from fmoe.training.expert_store import ExpertStore
from fmoe.tuning import search_space

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
ARMS = {
    "ASHA, TPE": ["--scheduler", "asha", "--searcher", "tpe"],
    "no pruning, TPE": ["--scheduler", "fifo", "--searcher", "tpe"],
    "no pruning, random": ["--scheduler", "fifo", "--searcher", "random"],
}
POINTS = 60


def write_space(name: str, folder: Path) -> Path:
    """The shipped space without its baseline and with next to no finals, which are not compared."""
    tree = yaml.safe_load((ROOT / "tune_spaces" / f"{name}.yaml").read_text())
    tree |= {"baseline": False, "final": {"top": 1, "attacks": ["fgsm"]}}
    tree["set"] = {**tree.get("set", {}), "evaluate.images": 100, "evaluate.attacks": ["fgsm"]}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def train_experts(file: Path, sets: list[str], data_dir: str | None, store: Path) -> None:
    """All experts that the space can ask for."""
    torch.set_num_threads(1)  # width-8 networks gain nothing from a second one
    space = search_space.load(str(file), sets)
    wanted = space.base.data
    loaded = data.load_training(
        wanted.name, data_dir, val_images=wanted.val_images, train_images=wanted.train_images
    )
    for config in space.samples:
        ExpertStore(Folder.at(store)).obtain_all(config, loaded)


def study(
    file: Path, arm: str, sets: list[str], minutes: float, data_dir: str | None, store: Path
) -> dict[str, Any]:
    """(seconds, best val_robust so far), and how many trials were begun."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "pipelines.tune", str(file), *ARMS[arm], "--name", "arm"]
        command += ["--trials", "1000", "--minutes", str(minutes), "--expert-store", str(store)]
        command += [part for override in sets for part in ("--set", override)]
        command += ["--data-dir", data_dir] if data_dir else []
        env = {**os.environ, "FMOE_HOME": home, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, "--json"], env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        answer = json.loads(done.stdout)
        rows = pq.read_table(Path(home) / "studies" / "arm" / "study.parquet").to_pylist()
    reports = sorted((row["at"], row["val_robust"]) for row in rows if row["epoch"] is not None)
    course, best = [], 0.0
    for at, value in reports:
        best = max(best, value)
        course.append((round(at, 1), best))
    return {"course": course, "trials": len(answer["trials"]), "counts": answer["counts"]}


def at(course: list[tuple[float, float]], seconds: float) -> float:
    return max((value for when, value in course if when <= seconds), default=0.0)


def chart(found: dict[str, list[dict[str, Any]]], seconds: float, space: str) -> Figure:
    """The seeds' median and range."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    times = [seconds * i / POINTS for i in range(POINTS + 1)]
    for arm, runs in found.items():
        values = [[at(run["course"], t) for run in runs] for t in times]
        line = axes.plot(times, [statistics.median(v) for v in values], label=arm)[0]
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(times, low, high, color=line.get_color(), alpha=0.15)
    axes.set(xlabel="seconds", ylabel="best val_robust so far", title=f"{space}, median and range")
    axes.legend(loc="lower right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data-dir")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE")
    given = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        file, store = write_space(given.space, Path(folder)), Path(folder) / "experts"
        for seed in range(given.seeds):  # interleaved: a machine that slows down slows all arms
            sets = [*given.sets, f"seed={seed}"]
            train_experts(file, sets, given.data_dir, store)
            for arm, runs in found.items():
                runs.append(study(file, arm, sets, given.minutes, given.data_dir, store))
                last = runs[-1]["course"][-1:]
                print(f"{arm:<20} seed {seed}  {runs[-1]['counts']}  {last}", flush=True)
    seconds = given.minutes * 60
    RESULTS.mkdir(exist_ok=True)
    chart(found, seconds, given.space).savefig(RESULTS / f"studies-{given.space}.png", dpi=110)
    machine = {"cpus": usable_cpus(), "processor": platform.processor() or platform.machine()}
    report = {
        "space": given.space,
        "set": given.sets,
        "minutes": given.minutes,
        "machine": machine,
        "arms": found,
    }
    (RESULTS / f"studies-{given.space}.json").write_text(json.dumps(report, indent=1) + "\n")
    parts = (0.25, 0.5, 1.0)
    print("| best val_robust after | " + " | ".join(f"{p * seconds:.0f} s" for p in parts), end="")
    print(" | trials |\n|---|" + "---|" * (len(parts) + 1))
    for arm, runs in found.items():
        cells = [[at(run["course"], part * seconds) for run in runs] for part in parts]
        middle = [f"{100 * statistics.median(c):.1f} ({100 * min(c):.1f}–{100 * max(c):.1f})"
                  for c in cells]  # fmt: skip
        trials = "/".join(str(run["trials"]) for run in runs)
        print(f"| {arm} | {' | '.join(middle)} | {trials} |")


if __name__ == "__main__":
    main()
