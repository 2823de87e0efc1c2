"""From a configuration to modules: the one place where the tree meets their flat arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fmoe.config import Config, Experts, Member
from fmoe.data.facts import Facts
from fmoe.data.sets import named
from fmoe.models.backbones import BackboneConfig
from fmoe.models.branches import Branch, Branches, Branching, Trunk
from fmoe.models.confidence import Confidence, TwoParts
from fmoe.models.experts import ResNet18
from fmoe.models.mixture import BranchedMixture, Mixture
from fmoe.numerics.draw import Draw

State = dict[str, Tensor]


def facts_of(config: Config) -> Facts:
    """Of the data set that the configuration names.

    Raises `UserError` for one that is not known here (a model's folder has its own), and for what
    no images have.
    """
    return named(config.data.name).facts


def backbone(spec: BackboneConfig, facts: Facts) -> nn.Module:
    network = spec.build(
        shape=facts.shape, mean=facts.mean, std=facts.std, classes=len(facts.classes)
    )
    assert "head" in dict(network.named_children()), "see `fmoe.models.backbone.Backbone`"
    return network


def expert(config: Config, member: Member, facts: Facts | None = None) -> nn.Module:
    """One untrained expert."""
    return backbone(config.experts.backbone_of(member[0]), facts or facts_of(config))


def gate(config: Config, facts: Facts | None = None, features: int = 0) -> nn.Module:
    """features: channels of the trunk, for a gate that reads them."""
    facts = facts or facts_of(config)
    return config.gate.build(
        shape=(features,) if config.gate.of_features else facts.shape,
        mean=facts.mean,
        std=facts.std,
        experts=len(config.experts.members),
    )


def branches(config: Config, facts: Facts | None = None, count: int | None = None) -> Branches:
    """Trunk and branches of the experts, untrained; count: of fewer of them."""
    facts, parts = facts or facts_of(config), config.experts
    own, network = parts.branch or Branching(), backbone(parts.backbone, facts)
    assert parts.trunk is not None
    assert isinstance(network, ResNet18)
    trunk = Trunk(network, parts.trunk.stages)
    width, classes = own.width or trunk.channels, len(facts.classes)
    return Branches(
        trunk,
        [
            Branch(channels=trunk.channels, width=width, blocks=own.blocks, classes=classes)
            for _ in range(count or len(parts.members))
        ],
    )


def two_parts(experts: Experts, confidence: Confidence) -> TwoParts:
    """The places of the experts that `confidence` tells apart."""
    accurate = [role in confidence.accurate for role, _ in experts.members]
    return TwoParts(
        confidence,
        accurate=tuple(place for place, is_accurate in enumerate(accurate) if is_accurate),
        robust=tuple(place for place, is_accurate in enumerate(accurate) if not is_accurate),
    )


def mixture(config: Config, facts: Facts | None = None) -> Mixture:
    """The untrained mixture, experts in the order of `config.experts.members`."""
    combining: dict[str, Any] = {
        "temperature": config.gate.temperature,
        "mixing": config.mixing,
        "hard": config.gate.hard,
        "confidence": config.confidence and two_parts(config.experts, config.confidence),
    }
    model: Mixture
    if config.experts.trunk:
        body = branches(config, facts)
        reads = gate(config, facts, body.trunk.channels)
        model = BranchedMixture(body, reads, of_features=config.gate.of_features, **combining)
    else:
        experts = [expert(config, member, facts) for member in config.experts.members]
        model = Mixture(experts, gate(config, facts), **combining)
    return model.to(memory_format=torch.channels_last)


def fork(model: Mixture, state: State) -> None:
    """Every expert starts from one network of the experts' backbone; with a trunk, that does."""
    parts = [model.body.trunk] if isinstance(model, BranchedMixture) else model.experts
    for part in parts:
        part.load_state_dict({name: state[name] for name in part.state_dict()})


def expert_state(config: Config, member: Member, facts: Facts | None = None) -> State:
    """What the expert's `state_dict` is like, without the memory for it."""
    with torch.device("meta"):
        return expert(config, member, facts).state_dict()


def mixture_state(config: Config, facts: Facts | None = None, most: int | None = None) -> State:
    """The same of the mixture: one expert of each backbone is built, however many there are.

    Raises `ValueError` for more than `most` tensors.
    """
    members, states = config.experts.members, list[State]()
    body: Branches | None = None
    with torch.device("meta"):
        if config.experts.trunk:
            body = branches(config, facts, 1)
        features = 0 if body is None else body.trunk.channels
        whole = prefixed("gate.", gate(config, facts, features).state_dict())
    place, built = "experts", dict[str, State]()
    if body is not None:
        whole |= prefixed("body.trunk.", body.trunk.state_dict())
        place = "body.branches"  # of which all are of one shape, as there is one backbone
        built[config.experts.backbone.model_dump_json()] = body.branches[0].state_dict()
    total = len(whole)
    for member in members:
        spec = config.experts.backbone_of(member[0]).model_dump_json()
        if spec not in built:
            built[spec] = expert_state(config, member, facts)
        states.append(built[spec])
        total += len(built[spec])
        if most is not None and total > most:
            raise ValueError(f"{len(members)} experts have more than {most} tensors")
    for i, state in enumerate(states):
        whole |= prefixed(f"{place}.{i}.", state)
    return whole


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def seeded_expert(
    config: Config, member: Member, seed: int, facts: Facts | None = None
) -> nn.Module:
    """An expert whose initial weights depend on the seed alone; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draw(seed, "init").seed)
        model = expert(config, member, facts).to(memory_format=torch.channels_last)
    config.experts.backbone_of(member[0]).start(model)
    return model


def seeded_mixture(config: Config, facts: Facts | None = None) -> Mixture:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draw(config.seed, "init").seed)
        model = mixture(config, facts)
    if config.experts.start == "fresh" and config.experts.trunk is None:
        for expert, (role, _) in zip(model.experts, config.experts.members, strict=True):
            config.experts.backbone_of(role).start(expert)
    return model


@dataclass(frozen=True)
class MixtureSubject:
    """The mixture of a configuration, for images of these facts: a `fmoe.evaluation.Subject`."""

    config: Config
    facts: Facts

    def build(self) -> nn.Module:
        return mixture(self.config, self.facts)
