r"""Time to robustness: one network on CIFAR-10, trained as cheaply as this library can.

    python -m benchmarks.speedrun --data-dir DATA
    python -m benchmarks.speedrun --data-dir DATA \
        --set experts.start=fresh --set "experts.trunk={stages: 3}" --set "gate={kind: features}"
    python -m benchmarks.speedrun --data-dir DATA --autoattack 500 \
        --against "python plain_script.py 16 8 2"

FGSM from a random start (two passes a step) on the folded bfloat16 twin of a width-24 network
with a stem of patches, first on smaller images, then on whole ones. Muon learns in eight epochs
more than SGD in ten; its weight decay and crops by two pixels keep it from learning the images
by heart, and a larger eps than the one that is judged makes up for one step. The clock runs from
the images in memory to the last epoch's end, validation after every epoch included.
Then: PGD-20 on the first 2,000 test images, with any iterate counting and with the last one alone
(as the reference counts), and AutoAttack.
--against runs a command beside it, whose output has `seconds N`. Result:
benchmarks/results/speedrun.json.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import time
from typing import Any

import torch
from torch import nn

from benchmarks import measure
from fmoe import assembly, config, data
from fmoe.attacks import PGD
from fmoe.config import Config
from fmoe.data import Data, Split
from fmoe.evaluation import evaluate
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import Numerics
from fmoe.numerics.worker import Worker
from fmoe.training import Training
from fmoe.training.validation import validation_accuracies, validation_attacks

SETTINGS = [
    "experts.backbone={kind: resnet18, width: 24, stem: patch}",
    "data.val_images=500",
    "data.augment={crop: 2, flip: true}",
    "joint.batch_size=256",
    "joint.attack={kind: fgsm, eps: 12/255, step_size: 14/255, random_start: true}",
    "joint.loss={kind: cross_entropy, label_smoothing: 0.1}",
    "joint.optimizer={kind: muon, lr: 0.14, weight_decay: 0.03, sgd_lr: 0.28}",
    "joint.validation={images: 500, attack: {kind: pgd, eps: 8/255, steps: 5}}",
]
"""Chosen on validation images: benchmarks/LOG.md."""
SIZES = "24,24,32,32,32,32,32,32"
"""Pixels a side, an epoch each."""
WANTED = 0.39


def train(settings: Config, loaded: Data) -> tuple[nn.Module, list[dict[str, float]], float]:
    device, phase = measure.device(), settings.joint
    images, augment = loaded.train.to(device), settings.data.augment
    begin = time.perf_counter()
    model: nn.Module = (
        assembly.seeded_mixture(settings)
        if settings.experts.trunk
        else assembly.seeded_expert(settings, settings.experts.members[0], settings.seed)
    )
    worker, numerics = Worker(device=device), Numerics("bfloat16")
    training = Training(phase, phase.attack, images, loaded.val, augment, settings.seed, numerics)
    trainer = training.trainer(model, worker)
    val = loaded.val[: phase.validation.images].to(device)
    judged = validation_attacks(phase, phase.attack)
    history = []
    for index, size in enumerate(phase.sizes):
        metrics = trainer.epoch(index, None)
        metrics |= validation_accuracies(model, val, judged, settings.seed, worker)
        history.append({key: round(value, 4) for key, value in metrics.items()})
        seconds = time.perf_counter() - begin
        print(f"epoch {index + 1}, {size} pixels: {seconds:.0f} s", history[-1], flush=True)
    return model.eval(), history, time.perf_counter() - begin


def last_iterate(model: nn.Module, test: Split) -> float:
    """As the reference counts: right about where 20 steps end, whatever it said on the way."""
    right, attack = 0, PGD(eps=8 / 255, step_size=2 / 255, steps=20)
    for start in range(0, len(test), 250):
        part = test[start : start + 250].to(measure.device())
        x_adv = attack(model, part.pixels(), part.labels, draw=Draw("last", start))
        with torch.no_grad():
            right += int((model(x_adv).argmax(1) == part.labels).sum())
    return right / len(test)


def other(command: str) -> dict[str, Any]:
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=True)
    last = done.stdout.strip().splitlines()[-1]
    found = re.search(r"seconds\s+([\d.]+)", last)
    if found is None:
        raise SystemExit(f"no `seconds N` in: {last}")
    named = " ".join(map(measure.named, shlex.split(command)))
    return {"command": named, "seconds": float(found[1]), "said": last}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="PATH=VALUE")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--autoattack", type=int, default=0, metavar="IMAGES")
    parser.add_argument("--against", metavar="COMMAND")
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    epochs = [f"joint.epochs={len(sizes)}", f"joint.sizes={sizes}"]
    settings = config.load("cifar10-small", [*SETTINGS, *epochs, *given.sets])
    loaded = data.load("cifar10", given.data_dir, val_images=settings.data.val_images)
    model, history, seconds = train(settings, loaded)
    test = loaded.test[: given.images]
    judged = evaluate(model, test.images, test.labels, attacks=["pgd"], device=measure.device())
    last = last_iterate(model, test)
    print(f"PGD-20: {judged.robust['pgd']:.4f}, last iterate {last:.4f}", flush=True)
    result: dict[str, Any] = {
        "sizes": sizes,
        "set": [*SETTINGS, *given.sets],
        "seconds": round(seconds, 1),
        "images": given.images,
        "figures": judged.figures,
        "pgd20_last_iterate": last,
        "history": history,
    }
    if given.against:
        result["against"] = other(given.against)
        print(result["against"]["said"], flush=True)
        if last >= WANTED:  # less robust in less time is no speed-up
            result["ratio"] = round(seconds / result["against"]["seconds"], 3)
    if given.autoattack:
        part = test[: given.autoattack]
        hard = evaluate(model, part.images, part.labels, attacks=["autoattack"], fast=True,
                        device=measure.device())  # fmt: skip
        result["autoattack"] = {"images": len(part), **hard.figures}
    measure.write("speedrun", result)


if __name__ == "__main__":
    main()
