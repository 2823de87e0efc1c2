"""Combining by confidence: accurate experts count only where robust ones are in doubt.

Experts trained on clean images are right more often and fall under any attack, surely; robust ones
are surer where they are right than where they are attacked into an error. So the robust part's
logits are mapped to stretch that difference, and its weight is bounded: whatever the accurate part
says, a robust answer of a margin above (1 - weight) / weight stands (MixedNUTS, arXiv 2402.02263).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from fmoe.schema import Spec

SMALLEST_VARIANCE = 1e-5

Mix = Callable[[Tensor, Tensor], Tensor]
"""(log gate weights [B,E], expert logits [B,E,K]) to log-probabilities [B,K]."""


class Confidence(Spec):
    """`confidence`: how the accurate experts' part and the rest's are combined; `fmoe calibrate`
    fits all but `accurate` on validation images."""

    accurate: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["benign"])
    """The roles whose experts are the accurate part; all others are the robust one."""
    weight: Annotated[float, Field(ge=0.5, lt=1)]
    """Of the robust part's probabilities in the sum."""
    shift: Annotated[float, Field(ge=-10, le=10)] = 0.0
    power: Annotated[float, Field(ge=1, le=10)] = 1.0
    scale: Annotated[float, Field(gt=0, le=100)] = 1.0

    def mapped(self, logits_BK: Tensor) -> Tensor:
        """log softmax(scale * sign(g) |g|^power), g = GELU(standardized logits + shift) [B,K]."""
        centred = logits_BK - logits_BK.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        g = F.gelu(centred / (variance + SMALLEST_VARIANCE).sqrt() + self.shift)
        return F.log_softmax(self.scale * g.sign() * g.abs() ** self.power, 1)


class Calibrate(Spec):
    """`joint.calibrate`: `confidence` is fitted to the mixture after every epoch."""

    accurate: Annotated[list[str], Field(min_length=1)] = Field(default_factory=lambda: ["benign"])
    """As in `confidence`."""
    keep: Annotated[float, Field(ge=0.5, le=1)] = 0.98
    """Share of what withstands an attack that shall still do, whatever the accurate part says."""
    steps: PositiveInt = 10
    """Of that attack: PGD on the robust part alone, by cross-entropy and by the margin."""


@dataclass(frozen=True)
class TwoParts:
    """A mixture's experts in two parts, by their places; the gate's weights mix within each."""

    confidence: Confidence
    accurate: tuple[int, ...]
    robust: tuple[int, ...]

    def part(
        self, mix: Mix, log_weights_BE: Tensor, logits_BEK: Tensor, experts: tuple[int, ...]
    ) -> Tensor:
        """Log-probabilities [B,K] of some experts alone."""
        places = list(experts)
        own = log_weights_BE[:, places]
        return mix(own - own.logsumexp(1, keepdim=True), logits_BEK[:, places])

    def combine(self, mix: Mix, log_weights_BE: Tensor, logits_BEK: Tensor) -> Tensor:
        """log((1 - weight) p_accurate + weight p_robust), the robust part's mapped: [B,K]."""
        parts = log_weights_BE, logits_BEK
        robust = self.confidence.mapped(self.part(mix, *parts, self.robust))
        return self.sum(self.part(mix, *parts, self.accurate), robust)

    def sum(self, accurate_BK: Tensor, robust_BK: Tensor) -> Tensor:
        """The same of log-probabilities."""
        weight = self.confidence.weight
        return torch.logaddexp(accurate_BK + math.log(1 - weight), robust_BK + math.log(weight))
