"""Optimizers: SGD, and Muon for convolutions; their learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from fmoe.errors import UserError
from fmoe.numerics.precision import multiplies_bfloat16
from fmoe.numerics.state import require
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

    Its matrix products are bfloat16 on devices that multiply in it: workers on unlike devices round
    them differently, and their weights drift apart.
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
    same memory (its columns are in the memory's order, which changes nothing). Matrices of one
    shape are made orthogonal together."""

    def __init__(self, weights: Iterable[nn.Parameter], **settings: Any):
        self.weights = list(weights)
        self.matrices = [as_matrix(weight.detach(), weight) for weight in self.weights]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            held, seen = weight.untyped_storage(), matrix.untyped_storage()
            assert held._cdata == seen._cdata, "a copy would not be trained"
        super().__init__(self.matrices, **settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            if weight.grad is not None:
                matrix.grad = as_matrix(weight.grad, weight)
        for group in self.param_groups:
            known: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, known, gradients, momenta)
            if known:
                self._descend(group, known, gradients, momenta)
        self.zero_grad()  # or the gradients would live on here

    def _descend(
        self,
        group: Mapping[str, Any],
        known: list[Tensor],
        gradients: list[Tensor],
        momenta: list[Tensor],
    ) -> None:
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(known, 1 - group["lr"] * group["weight_decay"])
        for (rows, columns), places in alike(known).items():
            factors = polar_factors(
                torch.stack([ahead[place] for place in places]),
                group["ns_coefficients"], group["ns_steps"], group["eps"],
            )  # fmt: skip
            rate = group["lr"] * math.sqrt(max(1, rows / columns))
            for place, factor in zip(places, factors, strict=True):
                known[place].add_(factor, alpha=-rate)


def alike(matrices: Iterable[Tensor]) -> dict[tuple[int, int], list[int]]:
    """The places of the matrices of each shape."""
    places: dict[tuple[int, int], list[int]] = {}
    for place, matrix in enumerate(matrices):
        rows, columns = matrix.shape
        places.setdefault((rows, columns), []).append(place)
    return places


def polar_factors(
    given_NRC: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Matrices [N,R,C] with singular values brought near 1 by Newton and Schulz's iteration; in
    bfloat16 where the device multiplies in it."""
    a, b, c = coefficients
    wide = given_NRC.mT if given_NRC.shape[1] > given_NRC.shape[2] else given_NRC
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=eps)
    x = x.bfloat16() if multiplies_bfloat16(x.device) else x
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    factors: Tensor = x.mT if wide is not given_NRC else x
    return factors


def as_matrix(tensor: Tensor, weight: Tensor) -> Tensor:
    """tensor [O,I,h,w] as [O,I*h*w], its columns as they lie in `weight`."""
    order = (0, 1, 2, 3) if weight.is_contiguous() else (0, 2, 3, 1)
    return tensor.permute(order).reshape(len(tensor), -1)


class Optimizers:
    """The optimizers of one phase, on its schedule, each with its parameters by name."""

    def __init__(self, schedule: ScheduleConfig, parts: Sequence[Part]):
        self.schedule, self.parts = schedule, parts
        self.known = {n: (made, tensor) for made, known in parts for n, tensor in known.items()}
        self.groups = [group for optimizer, _ in parts for group in optimizer.param_groups]
        self.peaks = [(group, group["lr"]) for group in self.groups]
        self.built = [unscheduled(group) for group in self.groups]

    def step(self, index: int, steps: int) -> None:
        """The global step `index` out of `steps`."""
        factor = self.schedule.factor(index, steps)
        for group, peak in self.peaks:
            group["lr"] = peak * factor
        for optimizer, _ in self.parts:
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """All that the optimizers remember of each parameter, as `parameter/name`.

        A number is a tensor of no dimension; of a parameter that has not learned yet there is
        `parameter/` alone. Raises `UserError` for what would be lost: anything but tensors and
        numbers, what belongs to no parameter, a setting that a step has changed.
        """
        if [unscheduled(group) for group in self.groups] != self.built:
            raise UserError("the optimizer changes its own settings, which no checkpoint keeps")
        known = {id(tensor) for _, tensor in self.known.values()}
        if any(id(key) not in known for optimizer, _ in self.parts for key in optimizer.state):
            raise UserError("the optimizer's state of no parameter is kept by no checkpoint")
        kept: dict[str, Tensor] = {}
        for parameter, (optimizer, tensor) in self.known.items():
            memory = optimizer.state.get(tensor) or {"": torch.empty(0)}
            kept |= {f"{parameter}/{name}": keepable(name, v) for name, v in memory.items()}
        return kept

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state` gave. Raises `UserError` where that is not all that, and only
        what, these optimizers keep; then they are as before their first step."""
        self._rehearse()
        for parameter, (optimizer, tensor) in self.known.items():
            if f"{parameter}/" in state:
                optimizer.state.pop(tensor, None)
        try:
            require(state, self.state(), "optimizer")
        except UserError:
            for optimizer, _ in self.parts:
                optimizer.state.clear()
            raise
        for parameter, (optimizer, tensor) in self.known.items():
            memory = optimizer.state.get(tensor, {})
            for name, value in memory.items():
                kept = state[f"{parameter}/{name}"]
                if isinstance(value, Tensor):
                    value.copy_(kept)
                else:
                    memory[name] = type(value)(kept.item())

    def _rehearse(self) -> None:
        """A step with gradients of 0 at a rate of 0: optimizers then hold all that they ever do.
        The weights stay as they are, gradients do not."""
        for optimizer, known in self.parts:
            if optimizer.state:
                continue
            before = {name: tensor.detach().clone() for name, tensor in known.items()}
            for tensor in known.values():
                tensor.grad = torch.zeros_like(tensor)
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step()
            for name, tensor in known.items():
                tensor.detach().copy_(before[name])
                tensor.grad = None
        for group, peak in self.peaks:
            group["lr"] = peak


def unscheduled(group: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's settings for a group but for what the schedule changes, to be compared."""
    return {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in group.items()
        if name not in ("params", "lr")
    }


def keepable(name: str, value: Any) -> Tensor:
    """What an optimizer remembers under a name, as a tensor. Raises `UserError`."""
    if "/" in str(name) or not isinstance(value, Tensor | int | float):
        raise UserError(f"the optimizer's state {name} is a {type(value).__name__}, which no "
                        "checkpoint keeps (tensors and numbers are kept)")  # fmt: skip
    if isinstance(value, Tensor):
        return value
    dtype = {bool: torch.bool, int: torch.int64}.get(type(value), torch.float64)
    return torch.tensor(value, dtype=dtype)
