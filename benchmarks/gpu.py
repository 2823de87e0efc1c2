"""All benchmarks that need no data, on the machine's GPU: run once, get the same tables.

    python -m benchmarks.gpu

Not run here: this project's machine has no GPU. Results go to benchmarks/results/*-cuda.json.
"""

from __future__ import annotations

import runpy
import sys

import torch

RUNS = (
    ["benchmarks.crafting"],
    ["benchmarks.step", "--width", "64", "--batch", "256"],
    ["benchmarks.memory", "--width", "64", "--batch", "256"],
    ["benchmarks.growth"],
)


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here")
    for module, *arguments in RUNS:
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main()
