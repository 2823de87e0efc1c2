"""From a configuration to modules: the one place where the tree meets their flat arguments."""

from __future__ import annotations

import torch
from torch import nn

from fmoe.config import Config
from fmoe.data import INFO
from fmoe.draw import Draw
from fmoe.experts import build_expert
from fmoe.mixture import Mixture


def expert(config: Config) -> nn.Module:
    """One untrained expert."""
    info = INFO[config.data.name]
    return build_expert(
        config.experts.backbone,
        mean=info.mean,
        std=info.std,
        classes=len(info.classes),
        width=config.experts.width,
    )


def mixture(config: Config) -> Mixture:
    """The untrained mixture, experts in the order of `config.experts.members`."""
    info = INFO[config.data.name]
    members = config.experts.members
    gate = config.gate.build(shape=info.shape, mean=info.mean, std=info.std, experts=len(members))
    model = Mixture(
        [expert(config) for _ in members],
        gate,
        temperature=config.gate.temperature,
        mixing=config.mixing,
        hard=config.gate.hard,
    )
    return model.to(memory_format=torch.channels_last)


def seeded_expert(config: Config, seed: int) -> nn.Module:
    """An expert whose initial weights depend on the seed alone; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draw(seed, "init").seed)
        return expert(config).to(memory_format=torch.channels_last)


def seeded_mixture(config: Config) -> Mixture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draw(config.seed, "init").seed)
        return mixture(config)
