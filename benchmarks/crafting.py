"""Crafting for training: PGD-10 on a whole mixture, against torchattacks, foolbox and ART.

    python -m benchmarks.crafting            # nine width-16 experts, batch 64; three of width 64
    python -m benchmarks.crafting --experts 9 --width 64 --batch 32

The peers get the module in float32 and eval mode, as their documentation calls them, in torch's
usual memory format; torchattacks also in channels last, the format of our own modules. Ours crafts
as the training step does: on the folded twin (on a CPU with its gradient written out), refreshed
once a call, under the recipe's precision; `compiled` with the recipe's `compile: true` (needs a C++
compiler on a CPU).
All of them take the same images and labels; rows are images/s. Loss is the cross-entropy that the
float32 model has on what was crafted: a fast attack that is weaker would show there. Result:
benchmarks/results/crafting.json. Needs the packages torchattacks (with `--no-deps`), foolbox and
adversarial-robustness-toolbox; one that is missing is left out.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from fmoe import assembly, config
from fmoe.attacks import PGD
from fmoe.data.facts import Facts
from fmoe.data.sets import named
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import Numerics, Precision
from fmoe.training.crafting import crafting_view

EPS, STEP, STEPS = 8 / 255, 2 / 255, 10
SHAPES = [(9, 16, 64), (3, 64, 32)]
ON_GPU = [(9, 64, 256)]
Craft = Callable[[], Tensor]


def mixture(experts: int, width: int, facts: Facts | None = None) -> nn.Module:
    """CIFAR-sized if no facts are given, untrained, with BatchNorm statistics of noise: speed does
    not depend on them."""
    facts = facts or named("cifar10").facts
    torch.manual_seed(0)
    counts = [f"experts.roles.benign.count={int(experts > 1)}", "experts.roles.fgsm.count=0"]
    counts.append(f"experts.roles.pgd.count={experts - int(experts > 1)}")
    model = assembly.mixture(
        config.load("cifar10-small", [f"experts.backbone.width={width}", *counts]), facts
    )  # fmt: skip
    with torch.no_grad():
        model.train()(torch.rand(64, *facts.shape))
    return model.eval().to(measure.device())


def ours(
    model: nn.Module, x: Tensor, y: Tensor, precision: Precision, *, compiled: bool = False
) -> Craft:
    attack = PGD(eps=EPS, step_size=STEP, steps=STEPS)
    numerics = Numerics(precision, compile=compiled)
    numerics.prepare(x.device)
    twin = crafting_view(model, numerics)

    def run(images: Tensor) -> Tensor:
        numerics.begin_pass(images.device)
        with numerics.autocast(images.device):
            out: Tensor = twin.module(images)
        return out

    def craft() -> Tensor:
        twin.refresh()
        return attack.perturb(run, x, y, Draw(0))

    return craft


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Craft:
    """Our loop on the module itself: what the twin is measured against."""
    attack = PGD(eps=EPS, step_size=STEP, steps=STEPS)
    return lambda: attack.perturb(model, x, y, Draw(0))


def peers(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Craft]:
    found: dict[str, Craft] = {}
    with suppress(ImportError):
        import torchattacks

        theirs = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=True)
        found["torchattacks"] = lambda: theirs(x, y)
    with suppress(ImportError):
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        linf = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=True)
        found["foolbox"] = lambda: linf(wrapped, x, y, epsilons=EPS)[1]
    with suppress(ImportError):
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        classifier = PyTorchClassifier(
            model, nn.NLLLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0),
            device_type="gpu" if x.is_cuda else "cpu",
        )  # fmt: skip
        art = ProjectedGradientDescentPyTorch(
            classifier, eps=EPS, eps_step=STEP, max_iter=STEPS, num_random_init=1,
            batch_size=len(x), verbose=False,
        )  # fmt: skip
        images, labels = x.cpu().numpy(), y.cpu().numpy()
        found["ART"] = lambda: torch.from_numpy(art.generate(images, labels)).to(x.device)
    return found


def compare(
    experts: int, width: int, batch: int, rounds: int, *, compiled: bool = False
) -> dict[str, Any]:
    model = mixture(experts, width)
    x = torch.rand(batch, 3, 32, 32, device=measure.device())
    y = torch.randint(10, (batch,), device=x.device)
    usual = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    helped = {f"{name}, channels last": craft for name, craft in peers(model, x, y).items()}
    arms: dict[str, Craft] = {
        **peers(usual, x, y),
        **{name: craft for name, craft in helped.items() if name.startswith("torchattacks")},
        "fmoe, plain float32": plain(model, x, y),
        "fmoe, twin float32": ours(model, x, y, "float32"),
        "fmoe, twin bfloat16": ours(model, x, y, "bfloat16"),
    }
    if compiled:
        arms["fmoe, compiled"] = ours(model, x, y, "bfloat16", compiled=True)
    seconds = measure.interleaved(arms, rounds=rounds)
    speed = {name: batch / value for name, value in seconds.items()}
    twin = speed["fmoe, twin bfloat16"]
    with torch.no_grad():
        losses = {"without an attack": round(F.nll_loss(model(x), y).item(), 4)}
    for name, craft in arms.items():
        x_adv = craft()
        with torch.no_grad():
            losses[name] = round(F.nll_loss(model(x_adv), y).item(), 4)
    return {
        "experts": experts,
        "width": width,
        "batch": batch,
        "images_per_second": {name: round(value, 1) for name, value in speed.items()},
        "bfloat16_twin_over": {n: round(twin / v, 2) for n, v in speed.items()},
        "loss_reached": losses,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    shapes = [(given.experts, given.width, given.batch)] if given.experts else SHAPES
    if not given.experts and torch.cuda.is_available():
        shapes = SHAPES + ON_GPU
    compiled = shutil.which("g++") is not None or torch.cuda.is_available()
    found = [compare(e, w, b, given.rounds, compiled=compiled) for e, w, b in shapes]
    measure.write("crafting", {"shapes": found})


if __name__ == "__main__":
    main()
