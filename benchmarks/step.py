"""A joint training step against its floor: K + 1 bare forward and backward passes.

    python -m benchmarks.step                # nine width-16 experts, batch 64, PGD-2 and PGD-10

The floor has no attack, no loss of ours, no optimizer and no learning rate: K passes of what
training crafts on with a gradient for the images, and one of the model in training mode with
gradients for its parameters, in the same dtypes and memory format. Result:
benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import chain, count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.crafting import mixture
from fmoe import config
from fmoe.attacks import PGD, AttackConfig
from fmoe.config import Config
from fmoe.data import Split
from fmoe.data.batches import Batches
from fmoe.data.facts import Facts
from fmoe.data.sets import named
from fmoe.numerics.precision import Numerics, Precision
from fmoe.numerics.worker import Worker
from fmoe.training import Trainer
from fmoe.training.crafting import crafting_view


def trainer(
    model: nn.Module,
    steps: int,
    batch: int,
    precision: Precision,
    *,
    images: int | None = None,
    checkpointing: bool = False,
    facts: Facts | None = None,
) -> Trainer:
    settings = config.load(
        "cifar10-small",
        [f"joint.batch_size={batch}", f"joint.checkpointing={str(checkpointing).lower()}"],
    )
    attack = PGD(eps=8 / 255, step_size=4 / 255, steps=steps)
    return on_noise(model, settings, attack, precision, images or 4 * batch, facts)


def on_noise(
    model: nn.Module,
    settings: Config,
    attack: AttackConfig,
    precision: Precision,
    images: int,
    facts: Facts | None = None,
    worker: Worker | None = None,
) -> Trainer:
    """Of the joint phase, on so many random images, of CIFAR-10's shape if no facts are given."""
    worker = worker or Worker(device=measure.device())
    facts = facts or named("cifar10").facts
    noise = torch.randint(256, (images, *facts.shape), dtype=torch.uint8)
    labels = torch.randint(len(facts.classes), (images,))
    split = Split(noise, labels).to(worker.device)
    share = worker.rank, worker.world_size
    batches = Batches(split, settings.joint.batch_size, settings.data.augment, 0, *share)
    return Trainer(model, settings.joint, attack, batches, worker, Numerics(precision), "all")


def bare_passes(made: Trainer, x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    twin = crafting_view(made.model, made.numerics)
    x = x.contiguous(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(steps):
            leaf = x.detach().requires_grad_(True)
            with made.numerics.autocast(x.device):
                loss = F.nll_loss(twin.module(leaf), y)
            torch.autograd.grad(loss, leaf)
        with made.numerics.autocast(x.device):
            loss = F.nll_loss(made.model.train()(x), y)
        torch.autograd.backward(loss)
        made.model.zero_grad()

    return run


def whole_steps(made: Trainer) -> Callable[[], None]:
    """Batches, augmentation, the attack's draw, crafting, loss, optimizer."""
    batches = chain.from_iterable(made.batches.epoch(index) for index in count())
    numbers = count()

    def run() -> None:
        made.step(next(numbers) % made.steps, *next(batches))

    return run


def compare(experts: int, width: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {"experts": experts, "width": width, "batch": batch, "steps": steps}
    kinds: tuple[Precision, ...] = ("bfloat16", "float32")
    for precision in kinds:
        model = mixture(experts, width)
        made = trainer(model, steps, batch, precision)
        bare = bare_passes(made, *next(iter(made.batches.epoch(0))), steps)
        seconds = measure.interleaved({"step": whole_steps(made), "floor": bare}, rounds=rounds)
        found[precision] = {
            **{name: round(value, 4) for name, value in seconds.items()},
            "ratio": round(seconds["step"] / seconds["floor"], 3),
            "images_per_second": round(batch / seconds["step"], 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=9)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found = [
        compare(given.experts, given.width, given.batch, steps, given.rounds) for steps in (2, 10)
    ]
    measure.write("step", {"shapes": found})


if __name__ == "__main__":
    main()
