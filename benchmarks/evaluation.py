"""Evaluation in float32: PGD-50 by the evaluator against torchattacks.

    python -m benchmarks.evaluation MODEL --data-dir DATA --images 1000

MODEL: a trained CIFAR-10 model. An image counts as broken if any of the 51 iterates breaks it, for
both: torchattacks' model is wrapped so that it remembers. Both run on all threads of this process,
a batch of 250 at a time. `plain` is our evaluator on the module itself, `fast` on its folded copy
with what breaks confirmed on the module. Result: benchmarks/results/evaluation.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torchattacks
from torch import Tensor, nn

import fmoe
from benchmarks import measure
from benchmarks.ever import Ever
from fmoe import data
from fmoe.attacks.threat import Linf
from fmoe.evaluation.chunk import Chunk
from fmoe.evaluation.iterated import ascending, until_broken
from fmoe.fast.folding import folded

EPS, STEPS, BATCH = 8 / 255, 50, 250
Judge = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) to whether each withstood, bool."""


def ours(model: nn.Module, fast: bool) -> Judge:
    attacked = folded(model) if fast else model

    def judge(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            start: Tensor = model(x).argmax(1) == y
        chunk = Chunk(x, y, (0,), model if fast else None)
        run = ascending(attacked, y)
        return (
            start
            & ~until_broken(run, chunk, start, "pgd", threat=Linf(eps=EPS), steps=STEPS).broken
        )

    return judge


def peer(model: nn.Module) -> Judge:
    def judge(x: Tensor, y: Tensor) -> Tensor:
        watched = Ever(model, y).eval()
        attack = torchattacks.PGD(watched, eps=EPS, alpha=EPS / 4, steps=STEPS)
        x_adv = attack(x, y)
        with torch.no_grad():
            watched(x)
            watched(x_adv)
        return ~watched.wrong

    return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    device = measure.device()
    model = fmoe.load(given.model, device=str(device))
    test = data.load("cifar10", given.data_dir).test[: given.images].to(device)
    arms = {"torchattacks": peer(model), "plain": ours(model, False), "fast": ours(model, True)}
    seconds, right = dict.fromkeys(arms, 0.0), dict.fromkeys(arms, 0)
    for start in range(0, len(test), BATCH):  # interleaved
        part = test[start : start + BATCH]
        x, y = part.pixels(), part.labels
        for name, judge in arms.items():
            measure.wait()
            begin = time.perf_counter()
            right[name] += int(judge(x, y).sum())
            measure.wait()
            seconds[name] += time.perf_counter() - begin
    measure.write(
        "evaluation",
        {
            "model": measure.named(given.model),
            "images": len(test),
            "steps": STEPS,
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "over_torchattacks": {
                name: round(value / seconds["torchattacks"], 3) for name, value in seconds.items()
            },
            "robust_accuracy": {name: count / len(test) for name, count in right.items()},
        },
    )


if __name__ == "__main__":
    main()
