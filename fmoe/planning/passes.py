"""How many passes through a model attacks and losses take: they are run on one that counts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fmoe.attacks import Attack
from fmoe.losses import LossConfig
from fmoe.numerics.draw import Draw
from fmoe.planning.totals import Totals

DRAWS = 1000  # of a randomized attack
IMAGES = 60  # dealt out evenly by most `shares`
CLASSES = 3


@dataclass(frozen=True)
class Passes(Totals):
    """On average, for each image: those with a gradient of the image, and those without."""

    gradients: float = 0.0
    forwards: float = 0.0


class Counting:
    """A linear model of the mean pixel."""

    def __init__(self) -> None:
        self.gradients = self.forwards = 0.0

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.requires_grad:
            self.gradients += len(x_BCHW) / IMAGES
        else:
            self.forwards += len(x_BCHW) / IMAGES
        return x_BCHW.mean((1, 2, 3))[:, None] * torch.arange(1.0, CLASSES + 1)


def of_attack(attack: Attack) -> Passes:
    """The mean over what the attack draws."""
    drawn = [attack.sample(Draw(number)) for number in range(DRAWS)]
    counts, kinds = Counter(map(repr, drawn)), {repr(one): one for one in drawn}
    each = (run(kinds[name]).times(count / DRAWS) for name, count in counts.items())
    return sum(each, Passes())


@cache
def images() -> tuple[Tensor, Tensor]:
    x = torch.rand(IMAGES, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return x, torch.arange(IMAGES) % CLASSES


def run(attack: Attack) -> Passes:
    model, (x, y) = Counting(), images()
    attack.perturb(model, x, y, Draw(0, total=IMAGES, rows=slice(0, IMAGES)))
    return Passes(model.gradients, model.forwards)


def of_loss(loss: LossConfig) -> float:
    """Passes of a training step."""
    model, (x, y) = Counting(), images()
    loss(model, x, x, y)
    return model.forwards
