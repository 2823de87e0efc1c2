"""Peak memory of a joint step, against what it needs at least where checkpointing is on.

    python -m benchmarks.memory              # nine width-16 experts, batch 128, PGD-2, bfloat16
    python -m benchmarks.memory --size 64 --classes 100 --epoch     # is an epoch within its step?

Bound: parameters, their gradients, the optimizer's state, and one expert's activations. Tensors are
counted, every one that is made during a step for as long as its storage lives (so what the
allocator keeps beyond them is not in it); on GPUs torch's own count stands beside it. Result:
benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.crafting import mixture
from benchmarks.step import trainer
from fmoe.data.facts import Facts
from fmoe.planning.memory import peak
from fmoe.training import Trainer

MEBIBYTE = 2**20


def everything(made: Trainer, *more: Tensor) -> list[Tensor]:
    state = made.optimizers.state().values()
    twin = made.twin.module.parameters() if made.twin else []
    return [*made.model.parameters(), *made.model.buffers(), *twin, *state, *more]


def size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activations(made: Trainer, expert: nn.Module, x: Tensor, y: Tensor) -> int:
    """Of one expert's training pass: all that lives beside its weights, their gradients included
    where they come while activations still live."""

    def run() -> None:
        with made.numerics.autocast(x.device):
            loss = F.cross_entropy(expert(x).float(), y)
        torch.autograd.backward(loss)

    expert.train()
    found = peak(run, expert.parameters()) - size(expert.parameters())
    for parameter in expert.parameters():
        parameter.grad = None
    return found


def compare(
    experts: int, width: int, batch: int, steps: int, facts: Facts, epoch: bool
) -> dict[str, Any]:
    found: dict[str, int] = {}
    for checkpointing in (False, True):
        made = trainer(
            mixture(experts, width, facts),
            steps,
            batch,
            "bfloat16",
            checkpointing=checkpointing,
            facts=facts,
        )
        x, y = next(iter(made.batches.epoch(0)))
        made.step(0, x, y)  # momentum comes with the first
        made.model.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        name = "checkpointing" if checkpointing else "plain"
        found[name] = peak(partial(made.step, 1, x, y), everything(made, x, y))
        if epoch:
            made.model.zero_grad()
            held = made.batches.images.held()
            kept = everything(made, held.images, held.labels)
            found[f"{name}, an epoch"] = peak(partial(made.epoch, 0, None), kept)
        if torch.cuda.is_available():
            found[f"{name}, by torch.cuda"] = torch.cuda.max_memory_allocated()
    if epoch:  # beside what a step keeps: the images, and a batch of them before it is scaled
        images = made.batches.images.held().images
        beside = size([images]) + size([images[:batch]])
        for name in ("plain", "checkpointing"):
            found[f"{name}, predicted of an epoch"] = found[name] + beside
    found["parameters"] = size(made.model.parameters())
    found["one expert's activations"] = activations(
        made, made.model.get_submodule("experts.0"), x, y
    )
    found["bound"] = 3 * found["parameters"] + found["one expert's activations"]
    return {
        **{"experts": experts, "width": width, "batch": batch, "steps": steps, "unit": "MiB"},
        "shape": list(facts.shape),
        "classes": len(facts.classes),
        **{name: round(value / MEBIBYTE, 1) for name, value in found.items()},
        "checkpointing_over_bound": round(found["checkpointing"] / found["bound"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, default=9)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="of images in colour, a side")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--epoch", action="store_true", help="measure one of four batches, too")
    given = parser.parse_args()
    facts = Facts(
        shape=(3, given.size, given.size),
        classes=tuple(map(str, range(given.classes))),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    shape = given.experts, given.width, given.batch, given.steps
    name = "memory" if given.size == 32 else f"memory-{given.size}"
    measure.write(name, compare(*shape, facts, given.epoch))


if __name__ == "__main__":
    main()
