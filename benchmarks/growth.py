"""How a joint step's time and memory grow with experts, width, PGD steps, batch, training images.

    python -m benchmarks.growth

One thing is varied at a time around four width-8 experts, batch 64, PGD-2, bfloat16, 1,000 images,
which lie on the device. Result: benchmarks/results/growth.json and .png.
"""

from __future__ import annotations

import argparse
from typing import Any

from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.crafting import mixture
from benchmarks.memory import MEBIBYTE, everything
from benchmarks.step import trainer, whole_steps
from fmoe.planning.memory import peak

BASE = {"experts": 4, "width": 8, "steps": 2, "batch": 64, "images": 1000}
VARIED = {
    "experts": [1, 2, 4, 8, 16],
    "width": [4, 8, 16, 32],
    "steps": [1, 2, 5, 10],
    "batch": [16, 32, 64, 128],
    "images": [1000, 10000, 50000],
}


def point(
    rounds: int, *, experts: int, width: int, steps: int, batch: int, images: int
) -> dict[str, float]:
    made = trainer(mixture(experts, width), steps, batch, "bfloat16", images=images)
    step = whole_steps(made)
    seconds = measure.interleaved({"step": step}, rounds=rounds)["step"]
    return {
        "seconds": round(seconds, 4),
        "mebibytes": round(
            peak(step, everything(made, made.batches.images.held().images)) / MEBIBYTE, 1
        ),
    }


def chart(found: dict[str, dict[int, Any]]) -> Figure:
    figure = Figure(figsize=(11, 5), layout="constrained")
    for row, unit in enumerate(("seconds", "mebibytes")):
        for column, (name, points) in enumerate(found.items()):
            axes = figure.add_subplot(2, len(found), row * len(found) + column + 1)
            axes.plot(list(points), [point[unit] for point in points.values()], marker="o")
            axes.set(xlabel=name, ylabel=unit if column == 0 else "", ylim=(0, None))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = {
        name: {value: point(given.rounds, **{**BASE, name: value}) for value in values}
        for name, values in VARIED.items()
    }
    measure.write("growth", {"around": BASE, "varied": found})
    chart(found).savefig(measure.path("growth", "png"), dpi=110)


if __name__ == "__main__":
    main()
