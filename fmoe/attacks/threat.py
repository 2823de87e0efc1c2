"""Threat models: how far an adversary may move an image, as a frozen value.

    threat = Linf(eps=8 / 255)
    ball = threat.ball(x)
    x_adv = ball.project(threat.random_point(x, draw))
    x_adv = ball.project(threat.ascend(x_adv, gradient, step_size))

Images are float [B,C,H,W] in [0,1], and eps is in pixels of [0,1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import AfterValidator, ValidationError, field_validator
from torch import Tensor

from fmoe.errors import UserError
from fmoe.numerics.draw import Draw
from fmoe.schema import Length, Spec


class Threat(Spec):
    """A norm, and how large a perturbation may be in it."""

    norm: str
    eps: Length
    most: ClassVar[float] = 1.0
    """The largest eps that is taken: about the largest that leaves anything of an image."""
    symbol: ClassVar[str]
    """Of the norm, for people."""
    library: ClassVar[str | None] = None
    """What pyautoattack calls the norm; None where it has no attacks for it."""
    box: ClassVar[bool] = False
    """Whether the ball is a box: eps times noise that is uniform in [-1,1] is a point of it."""

    @field_validator("eps")
    @classmethod
    def _at_most(cls, eps: float) -> float:
        if eps > cls.most:
            raise ValueError(f"must be at most {cls.most:g}")
        return eps

    def random_point(self, x: Tensor, draw: Draw) -> Tensor:
        """x [B,C,H,W] plus a perturbation that is uniform in the ball; it may leave [0,1]."""
        raise NotImplementedError

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """A step of length `step_size` in the direction that raises the loss most; not projected.

        gradient [B,C,H,W] is finite; where it is 0 an image stays where it is.
        """
        raise NotImplementedError

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point within eps of x and in [0,1] for each of x_adv [B,C,H,W]."""
        raise NotImplementedError

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """[B] in the norm."""
        raise NotImplementedError

    def ball(self, x: Tensor) -> Ball:
        """What an adversary may reach from x: for many projections onto the same."""
        return Around(self, x)

    def scaled(self, factor: float) -> Threat:
        """The same norm with `factor` times eps, or the largest that is taken."""
        return type(self)(eps=min(self.most, factor * self.eps))  # type: ignore[call-arg]


@dataclass(frozen=True)
class Ball:
    """The points within a threat model of images [B,C,H,W] and in [0,1]."""

    threat: Threat

    def project(self, x_adv: Tensor) -> Tensor:
        raise NotImplementedError

    def __getitem__(self, rows: Tensor) -> Ball:
        """That of some of the images (bool [B])."""
        raise NotImplementedError


@dataclass(frozen=True)
class Around(Ball):
    """As the threat model itself projects onto it; x: the images."""

    x: Tensor

    def project(self, x_adv: Tensor) -> Tensor:
        return self.threat.project(x_adv, self.x)

    def __getitem__(self, rows: Tensor) -> Ball:
        return Around(self.threat, self.x[rows])


@dataclass(frozen=True)
class Box(Ball):
    """With each pixel's bounds, which are computed once."""

    lower: Tensor
    upper: Tensor

    def project(self, x_adv: Tensor) -> Tensor:
        return x_adv.clamp(self.lower, self.upper)

    def __getitem__(self, rows: Tensor) -> Ball:
        return Box(self.threat, self.lower[rows], self.upper[rows])


class Linf(Threat):
    """No pixel changes by more than eps."""

    norm: Literal["linf"] = "linf"
    symbol: ClassVar[str] = "ℓ∞"
    library: ClassVar[str | None] = "Linf"
    box: ClassVar[bool] = True

    def random_point(self, x: Tensor, draw: Draw) -> Tensor:
        return x + self.eps * draw.noise(x)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        return x_adv + step_size * gradient.sign()

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return self.ball(x).project(x_adv)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return (x_adv - x).abs().flatten(1).amax(1)

    def ball(self, x: Tensor) -> Ball:
        return Box(self, (x - self.eps).clamp_(min=0), (x + self.eps).clamp_(max=1))


class L2(Threat):
    """The perturbation's Euclidean length is at most eps."""

    norm: Literal["l2"] = "l2"
    most: ClassVar[float] = 1000.0
    symbol: ClassVar[str] = "ℓ2"
    library: ClassVar[str | None] = "L2"

    def random_point(self, x: Tensor, draw: Draw) -> Tensor:
        # erfinv makes normal numbers of uniform ones, and these have no direction of their own
        normal = torch.erfinv(draw.noise(x).clamp(-1 + 1e-6, 1 - 1e-6))
        radius = ((draw.noise(x[:, :1, :1, :1]) + 1) / 2) ** (1 / x[0].numel())
        return x + self.eps * radius * unit(normal)

    def ascend(self, x_adv: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        return x_adv + step_size * unit(gradient)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        moved = x_adv - x
        inside = (self.eps / length(moved)).clamp(max=1)
        return (x + moved * inside).clamp(0, 1)  # which brings no pixel further from x

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        return length(x_adv - x).flatten()


TINY = 1e-12


def length(moved: Tensor) -> Tensor:
    """[B,1,1,1], never 0."""
    found: Tensor = moved.flatten(1).norm(dim=1).clamp_min(TINY)
    return found[:, None, None, None]


def unit(moved: Tensor) -> Tensor:
    """[B,C,H,W] of length 1 each; 0 where it is 0."""
    # squares of very small numbers would be 0
    largest = moved.flatten(1).abs().amax(1)[:, None, None, None]
    scaled = moved / largest.masked_fill(largest == 0, 1)
    return scaled / length(scaled)


ThreatConfig = Linf | L2
"""A new norm: a class above and its name in this union, as in `Linf | L2 | L1`."""


def kinds() -> dict[str, type[Threat]]:
    """Norm to the union's member."""
    members = get_args(ThreatConfig) or (ThreatConfig,)
    return {member.model_fields["norm"].default: member for member in members}


def known(norm: str) -> str:
    """The norm itself. Raises `ValueError`, which says which there are."""
    if norm not in kinds():
        raise ValueError(f"unknown norm {norm!r} (there are: {', '.join(kinds())})")
    return norm


Norm = Annotated[str, AfterValidator(known)]
"""The name of a norm of the union."""


def threat_model(norm: str, eps: float) -> Threat:
    """Raises `UserError`, which names the argument."""
    try:
        kind = kinds()[known(norm)]
    except ValueError as error:
        raise UserError(f"norm: {error}") from None
    expected = f"expected a number in [0, {kind.most:g}] (pixels of [0,1], such as 8 / 255)"
    if isinstance(eps, bool) or not isinstance(eps, float | int):
        raise UserError(f"eps: {eps!r}; {expected}")
    try:
        return kind(eps=eps)  # type: ignore[call-arg]
    except ValidationError:
        raise UserError(f"eps: {eps!r}; {expected}") from None


def within(norm: str, value: Any) -> Any:
    """A length or a list of them, as a field that stands after one of the norm. Raises `ValueError`
    for more than is taken in that norm."""
    for size in value if isinstance(value, list) else [value]:
        if size is not None and size > kinds()[norm].most:
            raise ValueError(f"must be at most {kinds()[norm].most:g} in {norm}")
    return value
