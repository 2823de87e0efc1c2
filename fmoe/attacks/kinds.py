"""Gradient attacks. The configuration *is* the attack: a frozen value that can be called.

`attack(model, x, y)` maps float images [B,C,H,W] in [0,1] and labels [B] to adversarial images in
[0,1], always within eps (pixels of [0,1]; but for N-FGSM) in its `norm` (`fmoe.attacks.threat`).
`model` is any callable from images to logits or log-probabilities [B,K]. A parameter that is a list
is drawn from uniformly, once a call (Divided We Fall, arXiv 2512.20821: randomized adversarial
training).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import Tensor

from fmoe.attacks.ascent import (
    KL_START,
    ModelFn,
    Objective,
    clean_probabilities,
    climb,
    eval_mode,
    input_gradient,
    objective_loss,
)
from fmoe.attacks.threat import Norm, kinds, threat_model, within
from fmoe.numerics.draw import Draw
from fmoe.schema import Drawn, Length, Pixels, Spec

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Attack(Spec):
    """What all attacks share: draw the parameters, then perturb with them."""

    def sample(self, draw: Draw) -> Attack:
        """The attack with every list replaced by one value drawn from it."""
        drawn = {
            name: draw.pick(value)
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), list)
        }
        return self.model_copy(update=drawn) if drawn else self

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        raise NotImplementedError

    @property
    def adversarial(self) -> bool:
        """Whether it changes images: training against it is chosen by robust accuracy and guarded
        against catastrophic overfitting."""
        return True

    @property
    def knows_warm_start(self) -> bool:
        """Whether `fmoe.training.warm_start` may be asked for in training against it."""
        return False

    @property
    def warm_eps(self) -> float | None:
        """Of a sampled attack: the eps that its random start multiplies `draw.noise` with, and in
        which a warm start keeps its perturbation; None where there is none to keep."""
        return None

    @property
    def one_step(self) -> Attack | None:
        """The one-step attack whose accuracy beside this one's shows catastrophic overfitting
        (arXiv 2001.03994, section 5.4); None where this one cannot show it."""
        raise NotImplementedError

    def __call__(self, model: ModelFn, x: Tensor, y: Tensor, *, draw: Draw | None = None) -> Tensor:
        draw = draw or Draw.from_global()
        with eval_mode(model):
            return self.sample(draw).perturb(model, x, y, draw)


class Clean(Attack):
    """No attack: the images as they are."""

    kind: Literal["clean"] = "clean"

    @property
    def adversarial(self) -> bool:
        return False

    @property
    def knows_warm_start(self) -> bool:
        return True

    @property
    def one_step(self) -> None:
        return None

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        return x


def scalar(value: float | list[float]) -> float:
    assert not isinstance(value, list), "sample() first"
    return float(value)


class Projected(Attack):
    """What the attacks share whose every iterate is projected onto a threat model's ball."""

    kind: str
    norm: Norm = "linf"  # first: eps is checked by it
    eps: Drawn[Length] = 8 / 255
    step_size: Drawn[Length] | None = None
    random_start: bool = True
    loss: Objective = "ce"

    @field_validator("eps", "step_size")
    @classmethod
    def _at_most(cls, value: Any, info: ValidationInfo) -> Any:
        return within(info.data["norm"], value) if "norm" in info.data else value

    @property
    def knows_warm_start(self) -> bool:
        return kinds()[self.norm].box

    @property
    def warm_eps(self) -> float:
        return scalar(self.eps)


def crafted(
    attack: Projected,
    model: ModelFn,
    x: Tensor,
    y: Tensor,
    draw: Draw,
    clean: Tensor | None,
    *,
    steps: int,
    step_size: float,
) -> Tensor:
    """All steps on all images, from a uniform point of the ball or from the image. At the image
    itself `kl` is 0 and flat: its gradient would be rounding noise, so there it starts a hair away
    (TRADES starts at 0.001)."""
    threat, start = threat_model(attack.norm, scalar(attack.eps)), x
    if attack.random_start:
        start = threat.random_point(x, draw)
    elif attack.loss == "kl":
        start = x + KL_START * draw.noise(x)
    ball = threat.ball(x)

    def look(x_adv: Tensor) -> tuple[None, Tensor]:
        return None, input_gradient(model, x_adv, y, attack.loss, clean)

    return climb(look, ball, ball.project(start), steps=steps, step_size=step_size).detach()


class FGSM(Projected):
    """One step of eps, x + eps * sign(gradient) (arXiv 1412.6572), by default from the image.

    With `random_start` it is the one-step attack of "Fast is better than free" (arXiv 2001.03994):
    uniform noise in the ball, then a step of `step_size` (eps where it is not given), then clip.
    """

    kind: Literal["fgsm"] = "fgsm"
    step_size: Length | None = None
    random_start: bool = False

    @property
    def one_step(self) -> None:
        return None

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        step_size = scalar(self.eps) if self.step_size is None else self.step_size
        clean = clean_probabilities(model, x, self.loss)
        return crafted(self, model, x, y, draw, clean, steps=1, step_size=step_size)


def linf_alone(norm: str) -> str:
    if norm != "linf":
        raise ValueError(f"nfgsm is for linf alone, not {norm}: take fgsm or pgd")
    return norm


class NFGSM(Attack):
    """N-FGSM (arXiv 2202.01181): a step of eps on top of noise of up to `noise` times eps, without
    clipping to the ball. For training at FGSM's cost with less catastrophic overfitting; in linf
    alone.

    What it gives is up to (1 + noise) * eps away from x: it is no attack to be judged by.
    """

    kind: Literal["nfgsm"] = "nfgsm"
    eps: Drawn[Pixels] = 8 / 255
    noise: Annotated[float, Field(ge=0, le=8)] = 2.0
    loss: Objective = "ce"
    norm: Annotated[Norm, AfterValidator(linf_alone)] = "linf"

    @property
    def one_step(self) -> None:
        return None

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        eps = scalar(self.eps)
        start = x + self.noise * eps * draw.noise(x)
        clean = clean_probabilities(model, x, self.loss)
        gradient = input_gradient(model, start, y, self.loss, clean)
        return (start + eps * gradient.sign()).clamp(0, 1).detach()


class PGD(Projected):
    """Projected gradient ascent (arXiv 1706.06083), in linf on the gradient's sign.

    step_size defaults to eps/4. With several restarts the one kept for an image is a misclassified
    one before any other, then the one of the highest loss.
    """

    kind: Literal["pgd"] = "pgd"
    steps: Drawn[PositiveInt] = 10
    restarts: PositiveInt = 1

    @property
    def one_step(self) -> FGSM:
        return FGSM(eps=self.eps, norm=self.norm)

    def once(
        self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw, clean: Tensor | None
    ) -> Tensor:
        assert isinstance(self.steps, int)
        step_size = scalar(self.eps) / 4 if self.step_size is None else scalar(self.step_size)
        return crafted(self, model, x, y, draw, clean, steps=self.steps, step_size=step_size)

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        clean = clean_probabilities(model, x, self.loss)
        best = self.once(model, x, y, draw, clean)
        if self.restarts == 1:
            return best
        best_wrong, best_loss = self._judge(model, best, y, clean)
        for _ in range(self.restarts - 1):
            x_adv = self.once(model, x, y, draw, clean)
            wrong, loss = self._judge(model, x_adv, y, clean)
            better = (wrong & ~best_wrong) | ((wrong == best_wrong) & (loss > best_loss))
            best = torch.where(better[:, None, None, None], x_adv, best)
            best_wrong, best_loss = best_wrong | wrong, torch.where(better, loss, best_loss)
        return best

    def _judge(
        self, model: ModelFn, x_adv: Tensor, y: Tensor, clean: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = model(x_adv)
        return logits.argmax(1) != y, objective_loss(self.loss, logits, y, clean)


class Shares(Attack):
    """Several attacks, each on its share of every batch: images are dealt out in turn, `parts` in a
    row to each (one, where they are not given).

    Dealt as `joint.own` deals images to experts: with a part an expert, in the order of the roles,
    each expert's own loss is on images of its role's attack.
    """

    kind: Literal["shares"] = "shares"
    of: list[AttackConfig] = Field(min_length=1)
    parts: list[Annotated[int, Field(ge=1, le=4096)]] | None = None

    @model_validator(mode="after")
    def _parts_match(self) -> Self:
        if self.parts is not None and len(self.parts) != len(self.of):
            raise ValueError(f"{len(self.parts)} parts for {len(self.of)} attacks in `of`")
        return self

    @property
    def adversarial(self) -> bool:
        return any(attack.adversarial for attack in self.of)

    @property
    def one_step(self) -> None:
        return None

    def sample(self, draw: Draw) -> Attack:
        return self.model_copy(update={"of": [attack.sample(draw) for attack in self.of]})

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        parts = torch.tensor(self.parts or [1] * len(self.of), device=x.device)
        places, total = draw.places(len(x), x.device), draw.total or len(x)
        dealt = torch.bucketize(places % parts.sum(), parts.cumsum(0), right=True)
        x_adv = x.clone()
        for number, attack in enumerate(self.of):
            rows = (dealt == number).nonzero()[:, 0]
            if len(rows):
                own = Draw(*draw.key, number, total=total, rows=places[rows])
                x_adv[rows] = attack.perturb(model, x[rows], y[rows], own)
        return x_adv


class Mix(Attack):
    """One of several attacks, drawn for every batch with the given weights."""

    kind: Literal["mix"] = "mix"
    of: list[AttackConfig] = Field(min_length=1)
    weights: list[Weight] | None = None

    @property
    def knows_warm_start(self) -> bool:
        return all(attack.knows_warm_start for attack in self.of)

    @property
    def one_step(self) -> None:
        return None

    @model_validator(mode="after")
    def _weights_match(self) -> Self:
        if self.weights is not None:
            if len(self.weights) != len(self.of):
                raise ValueError(f"{len(self.weights)} weights for {len(self.of)} attacks in `of`")
            if sum(self.weights) <= 0:
                raise ValueError("weights must not all be 0")
        return self

    def sample(self, draw: Draw) -> Attack:
        return draw.pick(self.of, self.weights).sample(draw)


AttackConfig = Annotated[Clean | FGSM | NFGSM | PGD | Shares | Mix, Field(discriminator="kind")]
"""A new attack: a class above and its name in this union."""

Shares.model_rebuild()
Mix.model_rebuild()
