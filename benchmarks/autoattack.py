"""AutoAttack by `fmoe evaluate` with two workers of one thread against the library called directly
on two threads: time, accuracy, verdicts.

    python -m benchmarks.autoattack MODEL --data-dir DATA --images 1000

MODEL: a trained CIFAR-10 model of any kind (folder, run or registry URI). Nothing may run beside
it; it takes about half an hour at width 16. Each side is a process of its own, started from the
command line: fmoe's time has Ray's start-up in it. Result: benchmarks/results/autoattack.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fmoe
from benchmarks import measure
from fmoe import data

ROOT = Path(__file__).parent.parent
EPS = 8 / 255


def library(model: str, images: int, data_dir: str | None) -> list[bool]:
    """pyautoattack's standard version, as its README calls it; whether each image withstood."""
    from pyautoattack import AutoAttack

    torch.set_num_threads(2)
    device = measure.device()
    test = data.load("cifar10", data_dir).test[:images].to(device)
    x, y = test.pixels().contiguous(), test.labels  # it cannot do with channels last
    loaded = fmoe.load(model, device=str(device))
    attack = AutoAttack(loaded, eps=EPS, seed=0, version="standard", device=device)
    _, said = attack.run_standard_evaluation(x, y, batch_size=250)
    return [bool(right) for right in said == y]


def ours(model: str, images: int, data_dir: str | None, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pipelines.evaluate", model, "--attacks", "autoattack"]
    command += ["--limit", str(images), "--json", *options]
    command += ["--gpu"] if measure.device().type == "cuda" else ["--workers", "2"]
    command += ["--data-dir", data_dir] if data_dir else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--exact", action="store_true", help="time fmoe without --fast as well")
    parser.add_argument("--library", metavar="FILE", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library:
        verdicts = library(given.model, given.images, given.data_dir)
        Path(given.library).write_text(json.dumps(verdicts))
        return
    seconds: dict[str, float] = {}
    accuracy: dict[str, float] = {}
    arms = {"fmoe --fast": ("--fast",)} | ({"fmoe": ()} if given.exact else {})
    for name, options in arms.items():
        begin = time.perf_counter()
        found = ours(given.model, given.images, given.data_dir, *options)
        seconds[name] = time.perf_counter() - begin
        accuracy[name] = found["robust"]["autoattack"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "verdicts.json"
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "benchmarks.autoattack", given.model,
                        "--images", str(given.images), "--library", str(file),
                        *(["--data-dir", given.data_dir] if given.data_dir else [])],
                       check=True, cwd=ROOT)  # fmt: skip
        seconds["pyautoattack"] = time.perf_counter() - begin
        verdicts = json.loads(file.read_text())
        accuracy["pyautoattack"] = sum(verdicts) / len(verdicts)
    measure.write(
        "autoattack",
        {
            "model": measure.named(given.model),
            "images": given.images,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "accuracy": accuracy,
            "ratio": {
                name: round(seconds[name] / seconds["pyautoattack"], 3) for name in arms
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
