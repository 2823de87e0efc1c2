"""Memory that a worker needs at its peak, by a training pass on tensors without contents.

Nothing is computed, so that a laptop tells of the largest networks, and the batch is the worker's
own: the peak is at the optimizer's step of a few images, and at the activations of many.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fmoe import assembly
from fmoe.config import Config, Role
from fmoe.data.facts import Facts
from fmoe.training.step_loss import StepLoss

FLOAT = 4


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that operations give, while their storages live; their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        given = func(*args, **(kwargs or {}))
        self.see(leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        return given

    def see(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.is_mkldnn:  # oneDNN's own form, for the time of one product
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self.known:
                continue
            self.known.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)

    def _gone(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def peak(run: Callable[[], object], kept: Iterable[Tensor]) -> int:
    """Bytes: of what is kept anyway, and of the most that was alive beside it."""
    alive = Alive()
    with alive:
        alive.see(kept)
        run()
    return alive.peak


def of_step(config: Config, facts: Facts, peers: int, images: float) -> float:
    """Bytes of a joint step on `images` a worker, whose group of `peers` shares the experts. Not
    with them: the data set, and what the allocator and libraries take for themselves."""
    config = with_experts(config, math.ceil(len(config.experts.members) / peers))
    model, empty = assembly.mixture(config, facts), FakeTensorMode()
    model.checkpointing = config.joint.checkpointing
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with FakeCopyMode(empty):
        model = copy.deepcopy(model)
    with empty:
        needed = peak_of(model, config, facts, math.ceil(images / config.joint.accumulate))
    twin = 2 if config.precision == "bfloat16" else FLOAT
    if config.joint.crafting == "train":
        twin = 0
    followers = len(config.joint.following)
    return needed + parameters * (FLOAT * followers + twin)


def peak_of(model: nn.Module, config: Config, facts: Facts, images: int) -> int:
    step_loss = StepLoss(model, config.joint, config.numerics, 1)
    x, y = torch.rand(images, *facts.shape), torch.zeros(images, dtype=torch.int64)
    optimizers = config.joint.optimizer.build(dict(model.train().named_parameters()))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(0, 2)  # its states come with the first
    model.zero_grad()

    def run() -> None:
        loss, _ = step_loss(x, x, y)
        loss.backward()
        optimizers.step(1, 2)

    states = optimizers.state().values()
    found = peak(run, [*model.parameters(), *model.buffers(), *states, x, y])
    model.zero_grad()
    return found


def with_experts(config: Config, count: int) -> Config:
    """The first so many experts of it."""
    roles, left = dict[str, Role](), count
    for name, role in config.experts.roles.items():
        roles[name] = role.model_copy(update={"count": min(role.count, left)})
        left -= roles[name].count
    experts = config.experts.model_copy(update={"roles": roles})
    return config.model_copy(update={"experts": experts, "confidence": None})
