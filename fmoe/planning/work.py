"""What networks compute and hold: counted on meta tensors, which have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fmoe import assembly
from fmoe.config import Config
from fmoe.data.facts import Facts
from fmoe.planning.totals import Totals

IMAGES = 2  # BatchNorm has no statistics of one


@dataclass(frozen=True)
class Work(Totals):
    """Of one image: operations (a multiply-add is two) of a forward pass, of one with the gradient
    of its input, of one with those of the parameters. Of any number of images: kernels that a
    forward pass starts. parameters: how many numbers are learned."""

    forward: float = 0.0
    crafting: float = 0.0
    training: float = 0.0
    kernels: float = 0.0
    parameters: int = 0


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operators but for those that give another view of what there is."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def of_module(module: nn.Module, shape: Sequence[int], *, of_features: bool = False) -> Work:
    """shape: of one input, [C,H,W] or [C]. of_features: what its input is made by is trained, so
    that it always has a gradient."""
    module = module.to("meta")
    x = torch.empty(IMAGES, *shape, device="meta")
    module.eval().requires_grad_(False)
    with Kernels() as kernels:
        forward = counted(module, x)
    crafting = counted(module, x.clone().requires_grad_(True))
    module.train().requires_grad_(True)
    training = counted(module, x.clone().requires_grad_(of_features))
    return Work(
        forward, crafting, training, kernels.count, sum(p.numel() for p in module.parameters())
    )


def counted(module: nn.Module, x: Tensor) -> float:
    """Operations an image, of the backward pass too where anything has a gradient."""
    with FlopCounterMode(display=False) as counter:
        out: Tensor = module(x)
        if out.requires_grad:
            torch.autograd.backward(out.sum())
    return float(counter.get_total_flops()) / IMAGES


def scaled(shape: tuple[int, int, int], side: int | None) -> tuple[int, int, int]:
    """[C,H,W] of images of a shape in training, which may scale them down."""
    channels, height, width = shape
    return shape if side is None else (channels, side, max(1, side * width // height))


@dataclass(frozen=True)
class Parts:
    """shared: gate and trunk; experts: what each has of its own, in their order."""

    shared: Work
    experts: tuple[Work, ...]

    def held(self, workers: int) -> Work:
        """Of the one that has the most of `workers` that share the experts."""
        count = -(-len(self.experts) // workers)
        starts = range(0, len(self.experts), count)
        shares = [sum(self.experts[start : start + count], Work()) for start in starts]
        return self.shared + max(shares, key=lambda share: share.training)

    @property
    def all(self) -> Work:
        return self.held(1)


def parts(config: Config, facts: Facts, side: int | None = None) -> Parts:
    """Of a configuration's mixture; side: of images in training, where they are scaled down."""
    shape = scaled(facts.shape, side)
    with torch.device("meta"):
        if config.experts.trunk:
            body = assembly.branches(config, facts, 1)
            deep = body.trunk(torch.empty(1, *shape))
            gate = assembly.gate(config, facts, body.trunk.channels)
            of_gate = (body.trunk.channels,) if config.gate.of_features else shape
            trunk = of_module(body.trunk, shape)
            branch = of_module(body.branches[0], deep.shape[1:], of_features=True)
            shared = trunk + of_module(gate, of_gate, of_features=config.gate.of_features)
            return Parts(shared, (branch,) * len(config.experts.members))
        known: dict[str, Work] = {}
        for member in config.experts.members:
            spec = config.experts.backbone_of(member[0]).model_dump_json()
            if spec not in known:
                known[spec] = of_module(assembly.expert(config, member, facts), shape)
        specs = [config.experts.backbone_of(r).model_dump_json() for r, _ in config.experts.members]
        shared = of_module(assembly.gate(config, facts), shape)
    return Parts(shared, tuple(known[spec] for spec in specs))


def of_expert(config: Config, facts: Facts, role: str, side: int | None = None) -> Work:
    """Of a whole network that is trained apart."""
    shape = scaled(facts.shape, side)
    with torch.device("meta"):
        return of_module(assembly.backbone(config.experts.backbone_of(role), facts), shape)
