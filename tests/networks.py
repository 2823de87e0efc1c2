"""Networks for tests: one that has learnt digits in seconds, and ones of every construction."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.data import Data
from fmoe.models.backbones import ResNet18Backbone
from fmoe.models.branches import Branch, Branches, Trunk
from fmoe.models.experts import ResNet18, Stem
from fmoe.models.gates import ConvNet, LinearNet
from fmoe.models.mixture import BranchedMixture, Mixture

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)

Perturb = Callable[[ResNet18, Tensor, Tensor, int], Tensor]
"""(network, images, labels, step) to what it is trained on."""


def learnt(digits: Data, *, width: int, steps: int, perturb: Perturb | None = None) -> ResNet18:
    """Steps of 64 training images at a rate of 0.1; always the same network, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet18(mean=digits.facts.mean, std=digits.facts.std, classes=10, width=width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        x, y = digits.train.pixels(), digits.train.labels
        for step in range(steps):
            rows = torch.randint(len(y), (64,))
            given = x[rows] if perturb is None else perturb(model, x[rows], y[rows], step)
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(given), y[rows]))
            optimizer.step()
    return model.eval()


def settled(network: nn.Module) -> nn.Module:
    """BatchNorm statistics, weights and biases that are not 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias):
                nn.init.uniform_(tensor, -0.5, 0.5)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def network(stem: Stem = "cifar") -> nn.Module:
    backbone = ResNet18Backbone(width=4, stem=stem)
    return settled(backbone.build(shape=(3, 32, 32), mean=MEAN, std=STD, classes=10))


def mixture(gate: nn.Module | None = None, hard: bool = False) -> nn.Module:
    gate = gate or ConvNet(mean=MEAN, std=STD, experts=2, width=4)
    return settled(Mixture([network(), network()], gate, temperature=0.5, hard=hard))


def branched(
    stem: Stem = "patch",
    stages: int = 3,
    gate: nn.Module | None = None,
    experts: int = 3,
) -> BranchedMixture:
    """Three experts of two blocks each on one trunk; by default the gate reads its features."""
    trunk = Trunk(ResNet18(mean=MEAN, std=STD, classes=10, width=4, stem=stem), stages)
    ends = [Branch(channels=trunk.channels, width=8, blocks=2, classes=10) for _ in range(experts)]
    model = BranchedMixture(
        Branches(trunk, ends),
        gate or nn.Linear(trunk.channels, experts),
        of_features=gate is None,
        temperature=0.5,
    )
    settled(model)
    return model.to(memory_format=torch.channels_last)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "network": network,
    "patch": lambda: network("patch"),
    "imagenet": lambda: network("imagenet"),
    "mixture": mixture,
    "hard": lambda: mixture(hard=True),
    "linear gate": lambda: mixture(LinearNet(mean=MEAN, std=STD, experts=2, shape=(3, 32, 32))),
    "branches": branched,
    "branches on large maps": lambda: branched("cifar", 1),
    "branches, max-pool": lambda: branched("imagenet", 2),
    "branches, gate on images": lambda: branched(
        gate=ConvNet(mean=MEAN, std=STD, experts=3, width=4)
    ),
}
"""Untrained, for images [B,3,32,32] and ten classes."""
