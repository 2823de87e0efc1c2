"""From a configuration to modules: the one place where the tree meets their flat arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def gate(config: Config) -> nn.Module:
    info = INFO[config.data.name]
    experts = len(config.experts.members)
    return config.gate.build(shape=info.shape, mean=info.mean, std=info.std, experts=experts)


def mixture(config: Config) -> Mixture:
    """The untrained mixture, experts in the order of `config.experts.members`."""
    model = Mixture(
        [expert(config) for _ in config.experts.members],
        gate(config),
        temperature=config.gate.temperature,
        mixing=config.mixing,
        hard=config.gate.hard,
    )
    return model.to(memory_format=torch.channels_last)


def expert_state(config: Config) -> dict[str, Tensor]:
    """What an expert's `state_dict` is like, without the memory for it."""
    with torch.device("meta"):
        return expert(config).state_dict()


def mixture_state(config: Config, most: int | None = None) -> dict[str, Tensor]:
    """The same of the mixture: one expert is built, however many there are.

    Raises `ValueError` for more than `most` tensors.
    """
    one, count = expert_state(config), len(config.experts.members)
    with torch.device("meta"):
        own = gate(config).state_dict()
    total = count * len(one) + len(own)
    if most is not None and total > most:
        raise ValueError(f"{count} experts have {total} tensors, more than {most}")
    experts = {f"experts.{i}.{name}": tensor for i in range(count) for name, tensor in one.items()}
    return {**experts, **{f"gate.{name}": tensor for name, tensor in own.items()}}


def seeded_expert(config: Config, seed: int) -> nn.Module:
    """An expert whose initial weights depend on the seed alone; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draw(seed, "init").seed)
        return expert(config).to(memory_format=torch.channels_last)


def seeded_mixture(config: Config) -> Mixture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draw(config.seed, "init").seed)
        return mixture(config)
