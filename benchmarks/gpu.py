"""All benchmarks on the machine's GPU: run once, get the same tables.

    python -m benchmarks.gpu                                   # those that need no data
    python -m benchmarks.gpu --data-dir DATA --model MODEL     # CIFAR-10's; a trained model's, too

Not run here: this project's machine has no GPU. Each is a process of its own, so that none finds
another's memory in use. Results go to benchmarks/results/*-cuda.json.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch

ANYWHERE = (
    ["crafting"],
    ["step", "--width", "64", "--batch", "256"],
    ["memory", "--width", "64", "--batch", "256"],
    ["growth"],
    ["startup"],
)
OF_IMAGES = ("ray_overhead", "cheap_attacks", "speedrun")
OF_A_MODEL = ("evaluation", "autoattack")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--model", help="a trained CIFAR-10 model")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here")
    runs = [list(run) for run in ANYWHERE]
    if given.data_dir:
        data = ["--data-dir", given.data_dir]
        runs += [[name, *data] for name in OF_IMAGES]
        runs += [[name, given.model, *data] for name in OF_A_MODEL if given.model]
    failed = []
    for name, *arguments in runs:
        print(f"== {name}", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments]).returncode:
            failed.append(name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
