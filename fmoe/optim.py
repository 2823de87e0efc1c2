"""Optimizers: SGD, and Muon for convolutions; their learning rate as a function of the step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from fmoe.schema import Spec

Named = Mapping[str, nn.Parameter]
Part = tuple[torch.optim.Optimizer, Mapping[str, Tensor]]
"""An optimizer and its parameters by name, in the form in which it knows them."""

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


Rate = Annotated[float, Field(gt=0, le=100)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, le=1)]


class Scheduled(Spec):
    """What all optimizers share: a peak learning rate, times the schedule's factor."""

    lr: Rate
    schedule: ScheduleConfig = Cyclic()

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a global step out of `steps`."""
        return self.lr * self.schedule.factor(step, steps)


class SGD(Scheduled):
    """SGD with momentum; Nesterov by default."""

    kind: Literal["sgd"] = "sgd"
    lr: Rate = 0.1
    momentum: Momentum = 0.9
    weight_decay: Decay = 5e-4
    nesterov: bool = True

    def build(self, parameters: Named) -> Optimizers:
        return Optimizers(self.schedule, [(self.of(parameters.values()), parameters)])

    def of(self, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov and self.momentum > 0,
            fused=True,
        )


class Muon(Scheduled):
    """Momentum, made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon), for the
    weights of convolutions; SGD of `sgd_lr` for norms, biases and linear layers.

    Its matrix products are bfloat16: workers on unlike devices round them differently, and their
    weights drift apart.
    """

    kind: Literal["muon"] = "muon"
    lr: Rate = 0.1
    sgd_lr: Rate = 0.2
    momentum: Momentum = 0.95
    weight_decay: Decay = 0.02
    """Of convolutions; a step takes lr * weight_decay of a weight."""

    def build(self, parameters: Named) -> Optimizers:
        weights = {name: p for name, p in parameters.items() if p.ndim == 4}
        rest = {name: p for name, p in parameters.items() if name not in weights}
        parts: list[Part] = []
        if weights:
            muon = ConvolutionMuon(
                weights.values(),
                lr=self.lr,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
            )
            parts.append((muon, dict(zip(weights, muon.matrices, strict=True))))
        if rest:
            parts.append((SGD(lr=self.sgd_lr).of(rest.values()), rest))
        return Optimizers(self.schedule, parts)


def with_kind(value: Any) -> Any:
    """SGD needs no name: it was there before the others."""
    return {"kind": "sgd", **value} if isinstance(value, dict) else value


OptimizerConfig = Annotated[SGD | Muon, Field(discriminator="kind"), BeforeValidator(with_kind)]
"""A new optimizer: a class above and its name in this union."""


class ConvolutionMuon(torch.optim.Muon):
    """torch's Muon, which knows matrices alone: a weight [O,I,h,w] is one [O,I*h*w] to it, on the
    same memory (its columns are in the memory's order, which changes nothing)."""

    def __init__(self, weights: Iterable[nn.Parameter], **settings: Any):
        self.weights = list(weights)
        self.matrices = [as_matrix(weight.detach(), weight) for weight in self.weights]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            assert weight.data_ptr() == matrix.data_ptr(), "a copy would not be trained"
        super().__init__(self.matrices, **settings)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            if weight.grad is not None:
                matrix.grad = as_matrix(weight.grad, weight)
        super().step()  # type: ignore[no-untyped-call]
        self.zero_grad()  # or the gradients would live on here


def as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """tensor [O,I,h,w] as [O,I*h*w], its columns as they lie in `weight`."""
    order = (0, 1, 2, 3) if weight.is_contiguous() else (0, 2, 3, 1)
    return tensor.permute(order).reshape(len(tensor), -1)


class Optimizers:
    """The optimizers of one phase, on its schedule, each with its parameters by name."""

    def __init__(self, schedule: ScheduleConfig, parts: Sequence[Part]):
        self.schedule, self.parts = schedule, parts
        self.known = {n: (made, tensor) for made, known in parts for n, tensor in known.items()}
        groups = [group for optimizer, _ in parts for group in optimizer.param_groups]
        self.peaks = [(group, group["lr"]) for group in groups]

    def step(self, index: int, steps: int) -> None:
        """The global step `index` out of `steps`."""
        factor = self.schedule.factor(index, steps)
        for group, peak in self.peaks:
            group["lr"] = peak * factor
        for optimizer, _ in self.parts:
            optimizer.step()

    def momentum(self) -> dict[str, Tensor]:
        """By parameter name, as the optimizer holds it; none before the first step."""
        return {
            name: kept
            for name, (optimizer, tensor) in self.known.items()
            if (kept := optimizer.state.get(tensor, {}).get("momentum_buffer")) is not None
        }

    def restore(self, momentum: Mapping[str, Tensor]) -> None:
        """Raises `KeyError` for a parameter that is not among these."""
        for name, kept in momentum.items():
            optimizer, tensor = self.known[name]
            # another shape is another optimizer's: a trial of PBT may go over to one
            if kept.shape == tensor.shape:
                own = torch.empty_like(tensor).copy_(kept)
                optimizer.state[tensor] = {"momentum_buffer": own}
