"""SGD and its learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from fmoe.schema import Spec

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Cyclic(Spec):
    """Linear from 0 to the peak at a fraction of the run, then linear to 0 (arXiv 2001.03994)."""

    kind: Literal["cyclic"] = "cyclic"
    peak: Fraction = 0.2

    def factor(self, step: int, steps: int) -> float:
        done = (step + 0.5) / steps
        return min(done / self.peak, (1 - done) / (1 - self.peak))


class Piecewise(Spec):
    """Constant, times `gamma` at each milestone (fractions of the run)."""

    kind: Literal["piecewise"] = "piecewise"
    milestones: list[Fraction] = Field(default_factory=lambda: [0.5, 0.75])
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    def factor(self, step: int, steps: int) -> float:
        return self.gamma ** sum(step >= milestone * steps for milestone in self.milestones)


class Constant(Spec):
    kind: Literal["constant"] = "constant"

    def factor(self, step: int, steps: int) -> float:
        return 1.0


ScheduleConfig = Annotated[Cyclic | Piecewise | Constant, Field(discriminator="kind")]


class SGD(Spec):
    """SGD with momentum; Nesterov by default."""

    lr: Annotated[float, Field(gt=0, le=100)] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    nesterov: bool = True
    schedule: ScheduleConfig = Cyclic()

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
            fused=True,
        )

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a global step out of `steps`."""
        return self.lr * self.schedule.factor(step, steps)
