"""A small network that has learnt digits in seconds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fmoe.data import Data
from fmoe.experts import ResNet18

Perturb = Callable[[ResNet18, Tensor, Tensor, int], Tensor]
"""(network, images, labels, step) to what it is trained on."""


def learnt(digits: Data, *, width: int, steps: int, perturb: Perturb | None = None) -> ResNet18:
    """Steps of 64 training images at a rate of 0.1; always the same network, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet18(mean=digits.info.mean, std=digits.info.std, classes=10, width=width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        x, y = digits.train.pixels(), digits.train.labels
        for step in range(steps):
            rows = torch.randint(len(y), (64,))
            given = x[rows] if perturb is None else perturb(model, x[rows], y[rows], step)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(given), y[rows]))
            optimizer.step()
    return model.eval()
