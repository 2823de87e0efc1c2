"""Adversarial examples to look at: crafted here, drawn by `fmoe.plots`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmoe.attacks import PGD
from fmoe.attacks.threat import Threat
from fmoe.data import Split
from fmoe.data.splits import Images
from fmoe.evaluation.chunk import Chunk
from fmoe.evaluation.iterated import ascending, until_broken
from fmoe.evaluation.result import Evaluation
from fmoe.evaluation.sweeps import grid
from fmoe.numerics.draw import Draw


@dataclass(frozen=True)
class Examples:
    """x, x_adv float [n,C,H,W] in [0,1], labels int64 [n]; what the model says of both, int64 [n]
    (below 0 where that is not finite); eps float [n]: what each was attacked with."""

    x: Tensor
    x_adv: Tensor
    labels: Tensor
    said: Tensor
    said_adv: Tensor
    eps: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def difference(self) -> Tensor:
        """As an image to be seen: 0.5 is no change, 0 and 1 one of eps."""
        return (self.x_adv - self.x) / (2 * self.eps[:, None, None, None].clamp_min(1e-6)) + 0.5


def first(model: nn.Module, images: Images, threat: Threat, count: int = 8) -> Examples:
    """The first ones under PGD-20."""
    part = images[:count].held()
    x, labels = part.pixels(), part.labels
    attack = PGD(eps=threat.eps, norm=threat.norm, steps=20)
    x_adv = attack(model, x, labels, draw=Draw(0, "plot"))
    with torch.no_grad():
        said, said_adv = model(x).argmax(1), model(x_adv).argmax(1)
    return Examples(x, x_adv, labels, said, said_adv, torch.full((len(x),), threat.eps))


def weakest(
    evaluation: Evaluation, model: nn.Module, split: Split, count: int = 8
) -> Examples | None:
    """Images that are right and break at the smallest eps, each at the smallest of the sweep that
    breaks it now (others by another attack); None where no image breaks."""
    smallest = evaluation.smallest_eps
    order = smallest.masked_fill(smallest == 0, torch.inf).argsort(stable=True)[:count]
    part = split[order[smallest[order].isfinite()]]
    if not len(part):
        return None
    x, y = part.pixels(), part.labels
    x_adv, eps, said_adv = x.clone(), torch.zeros(len(y)), y.clone()
    alive = torch.ones(len(y), dtype=torch.bool)
    chunk = Chunk(x, y, (Draw(evaluation.settings.seed, "pictures").seed,))
    threat = evaluation.settings.threat
    sizes = {size.eps: size for size in (*grid(threat), threat)}
    for _, size in sorted(sizes.items()):
        attacked = until_broken(ascending(model, y), chunk, alive, "pictures", threat=size)
        x_adv = torch.where(alive[:, None, None, None], attacked.x, x_adv)
        eps = torch.where(alive, size.eps, eps)
        said_adv = torch.where(alive, attacked.prediction, said_adv)
        alive = alive & ~attacked.broken
        if not alive.any():
            break
    return Examples(x, x_adv, y, y, said_adv, eps)
