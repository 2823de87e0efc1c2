"""Robust accuracy per minute: cheap training attacks against plain PGD.

    python -m benchmarks.cheap_attacks --data-dir DATA

One width-16 network of `cifar10-small` on 10,000 images, the same minutes for each arm (so
a cheap attack gets more epochs), one seed; the guard is on. Then PGD-20 on the first 1,000 test
images. Nothing may run beside it. Result: benchmarks/results/cheap_attacks.json.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks import measure
from fmoe import assembly, config, data
from fmoe.config import Config
from fmoe.data import Data
from fmoe.evaluation import evaluate
from fmoe.numerics.worker import Worker
from fmoe.training import Training, epochs

STEP = "eps: 8/255, step_size: 10/255"
ARMS = {
    "PGD-10": ["joint.attack={kind: pgd, eps: 8/255, steps: 10}"],
    "PGD-2": [f"joint.attack={{kind: pgd, {STEP}, steps: 2}}"],
    "FGSM, random start": [f"joint.attack={{kind: fgsm, {STEP}, random_start: true}}"],
    "N-FGSM": ["joint.attack={kind: nfgsm, eps: 8/255}"],
    "PGD-1, warm start": [
        "joint.attack={kind: pgd, eps: 8/255, step_size: 4/255, steps: 1}",
        "joint.warm_start=true",
    ],
}
BASE = ["experts.backbone.width=16", "joint.validation.images=500", "data.train_images=10000"]


def trained(arm: str, loaded: Data, count: int) -> tuple[Any, list[dict[str, float]], Config]:
    settings = config.load("cifar10-small", [*BASE, f"joint.epochs={count}", *ARMS[arm]])
    member, phase = settings.experts.members[0], settings.joint
    model = assembly.seeded_expert(settings, member, settings.seed)
    stream = epochs(
        model,
        Training(
            phase,
            phase.attack,
            loaded.train,
            loaded.val,
            settings.data.augment,
            settings.seed,
            settings.numerics,
        ),
        worker=Worker(device=measure.device()),
    )
    return model, [epoch.metrics for epoch in stream], settings


def run(arm: str, loaded: Data, minutes: float) -> dict[str, Any]:
    """One epoch tells how many the minutes are worth; the schedule needs to know."""
    _, (probe,), _ = trained(arm, loaded, 1)
    count = max(2, round(minutes * 60 / probe["seconds"]))
    begin = time.perf_counter()
    model, history, _ = trained(arm, loaded, count)
    seconds = time.perf_counter() - begin
    test = loaded.test[:1000]
    judged = evaluate(model.eval(), test.images, test.labels, attacks=["pgd"],
                      device=measure.device(), fast=True)  # fmt: skip
    return {
        "epochs": count,
        "seconds": round(seconds, 1),
        "figures": judged.figures,
        "overfitted": sum("overfitted" in metrics for metrics in history),
        "val_robust": [round(metrics["val_robust"], 3) for metrics in history],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--minutes", type=float, default=2.0)
    given = parser.parse_args()
    loaded = data.load("cifar10", given.data_dir, train_images=10000)
    found = {arm: run(arm, loaded, given.minutes) for arm in ARMS}
    measure.write("cheap_attacks", {"minutes": given.minutes, "arms": found})


if __name__ == "__main__":
    main()
