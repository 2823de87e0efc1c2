"""What follows every step of the optimizer, such as a running average of the weights.

It keeps tensors of its own in the checkpoint, and may offer another state of the model, which is
validated beside the trained one and deployed where it is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import AfterValidator, BeforeValidator
from torch import Tensor, nn

from fmoe.numerics.state import Stateful
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


def none_yet(value: Any) -> Any:
    raise ValueError("there is no kind of thing yet that follows a step")


AfterStepConfig = Annotated[AfterStep, BeforeValidator(none_yet)]
"""A new one: a class above and its name in a union in place of this one."""


def each_once(given: Sequence[AfterStep]) -> Sequence[AfterStep]:
    kinds = [one.kind for one in given]
    if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        raise ValueError(f"{twice[0]} is there more than once")
    return given


Following = Annotated[list[AfterStepConfig], AfterValidator(each_once)]
