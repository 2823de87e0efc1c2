"""What attacks ascend, its gradient for the input, and projected ascent within a ball.

The gradient is asked for the input alone: parameters, buffers and `.grad` stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.attacks.threat import Ball
from fmoe.numerics.precision import at_least_float32

ModelFn = Callable[[Tensor], Tensor]
Objective = Literal["ce", "margin", "kl"]
KL_START = 1e-3


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max over k != y of z_k, minus z_y, per image [B]; positive where misclassified (CW)."""
    label = F.one_hot(y, logits.shape[1]).bool()
    own = logits.gather(1, y[:, None])[:, 0]  # logits[label] would make the host wait for a GPU
    return logits.masked_fill(label, -torch.inf).amax(1) - own


def objective_loss(kind: Objective, logits: Tensor, y: Tensor, clean: Tensor | None) -> Tensor:
    """What the attack ascends, per image [B]. `kl` is TRADES' (arXiv 1901.08573, eq. 4)."""
    logits = at_least_float32(logits)
    match kind:
        case "ce":
            return F.cross_entropy(logits, y, reduction="none")
        case "margin":
            return margin(logits, y)
        case "kl":
            assert clean is not None
            return F.kl_div(F.log_softmax(logits, 1), clean, reduction="none").sum(1)
        case _:
            assert_never(kind)


@contextmanager
def eval_mode(model: ModelFn) -> Iterator[None]:
    """Crafting on a module in training mode would update its BatchNorm statistics every step."""
    was_training = (
        [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    )
    for module in was_training:
        module.training = False
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def input_gradient(
    model: ModelFn, x: Tensor, y: Tensor, kind: Objective, clean: Tensor | None
) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        loss = objective_loss(kind, model(x), y, clean).sum()
        (gradient,) = torch.autograd.grad(loss, x)
    return gradient


def clean_probabilities(model: ModelFn, x: Tensor, kind: Objective) -> Tensor | None:
    if kind != "kl":
        return None
    with torch.no_grad():
        return F.softmax(at_least_float32(model(x)), 1)


Look = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]
"""Images [b,C,H,W] to which of them go on (bool [b]; None for all), and the gradient at those
(None where nothing depends on the images)."""


def climb(look: Look, ball: Ball, x_adv: Tensor, *, steps: int, step_size: float) -> Tensor:
    """Projected gradient ascent (arXiv 1706.06083): the images that are left, after the last step.

    Ends early where `look` lets no image go on.
    """
    for _ in range(steps):
        left, gradient = look(x_adv)
        if left is not None:
            x_adv, ball = x_adv[left], ball[left]
        if len(x_adv) == 0:
            break
        if gradient is not None:
            x_adv = ball.project(ball.threat.ascend(x_adv, gradient, step_size))
    return x_adv
