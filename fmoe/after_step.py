"""What follows every step of the optimizer, such as a running average of the weights.

It keeps tensors of its own in the checkpoint, and may offer another state of the model, which is
validated beside the trained one and deployed where it is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Protocol

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from fmoe.numerics.state import Stateful, require
from fmoe.schema import Spec


class Follower(Stateful, Protocol):
    """Built on the model where it is trained, before the first step. On several workers parameters
    are the same after every step, BatchNorm's statistics only when `offer` is called."""

    def after_step(self, step: int) -> None:
        """The optimizer has just made the global step of this index."""
        ...

    def offer(self) -> Mapping[str, Tensor] | None:
        """After an epoch: another state with the names of the model's `state_dict`, or None."""
        ...


class AfterStep(Spec):
    """What all kinds share: they build themselves. A checkpoint keeps them by their `kind`."""

    kind: str

    def build(self, model: nn.Module) -> Follower:
        raise NotImplementedError


class Average:
    """The parameters' exponential moving average; BatchNorm's statistics are the model's own."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.mean = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        parameters = [parameter.detach() for parameter in self.model.parameters()]
        torch._foreach_lerp_(list(self.mean.values()), parameters, 1 - self.decay)

    def offer(self) -> Mapping[str, Tensor]:
        return {**self.model.state_dict(), **self.mean}

    def state(self) -> dict[str, Tensor]:
        return self.mean

    def restore(self, state: Mapping[str, Tensor]) -> None:
        require(state, self.mean, "after:ema")
        for name, tensor in state.items():
            self.mean[name].copy_(tensor)


class Ema(AfterStep):
    """An exponential moving average of the weights (arXiv 2010.03593)."""

    kind: Literal["ema"] = "ema"
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """How much of the average a step keeps: 0.995 is a mean over some 200 steps."""

    def build(self, model: nn.Module) -> Average:
        return Average(model, self.decay)


AfterStepConfig = Ema
"""A new one: a class above and its name in this union, as in `Ema | Another`."""


def each_once(given: Sequence[AfterStep]) -> Sequence[AfterStep]:
    kinds = [one.kind for one in given]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"{twice[0]} is there more than once")
    return given


Following = Annotated[list[AfterStepConfig], AfterValidator(each_once)]
