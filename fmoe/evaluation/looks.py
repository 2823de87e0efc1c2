"""Looks for answers that are not those of a function of the image alone.

Attacks take for granted that the same image always gets the same answer. One that keeps what it
saw, looks at the other images of the batch, or at whether a gradient is asked for, withstands them
without being robust. So after each stage the model is asked again: about the clean images, and, on
a copy that was never asked anything, about where the attack has left them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.attacks import margin
from fmoe.attacks.threat import Threat
from fmoe.evaluation.chunk import BROKEN, PREDICTION, Chunk, Columns
from fmoe.evaluation.copies import copied
from fmoe.evaluation.outputs import classes, finite
from fmoe.evaluation.witness import Left, Odd, Witness
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import at_least_float32

SAMPLE_IMAGES = 16
"""Images asked once more in another batch."""
IMAGES_ALONE = 2
"""Images asked alone."""
APART = 1e-2
"""Of the span of an image's logits: what batches of other sizes do not do by rounding, in bfloat16
neither."""
ROUNDING = 1e-5
"""Of the largest logit: what is left of it where all of them are large."""


class Forgetful(nn.Module):
    """What a model says that is asked for the first time, every time: on a copy each."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = copied(self.model)(x)
        return outputs


def ask(model: nn.Module, x: Tensor, *, gradient: bool = False) -> Tensor:
    """Outputs [B,K] in at least float32; as in an attack where a gradient is asked for."""
    with torch.set_grad_enabled(gradient):
        given = x.detach().clone().requires_grad_(gradient)
        return at_least_float32(model(given)).detach()


def differ(a: Tensor, b: Tensor, apart: float = APART) -> Tensor:
    """bool [B]: outputs [B,K] that rounding does not explain; NaN equals NaN."""
    same = (a == b) | (a.isnan() & b.isnan())
    z = a.nan_to_num(0, 0, 0)
    allowed = apart * (z.amax(1) - z.amin(1)) + ROUNDING * z.abs().amax(1)
    return (~same & ~((a - b).abs() <= allowed[:, None])).any(1)


@dataclass(frozen=True)
class Second:
    """What a copy that was never asked says of images: rows [R] of the chunk, their classes [R],
    and whether its outputs are others than the attacked model's [R]."""

    rows: Tensor
    classes: Tensor
    changed: Tensor


def after(
    model: nn.Module, fresh: nn.Module | None, chunk: Chunk, first: Tensor, asked: Witness
) -> Second | None:
    """Notes what the stage has shown. first [B,K]: outputs for the chunk before it; model: what was
    asked in it; fresh: a copy that was not.

    None where the stage attacked no image, or where answers are random.
    """
    again, second = differ(first, ask(model, chunk.x)), None
    for left in asked.last:
        second = _second(model if fresh is None else fresh, left, asked)
        if second is None:
            return None
    asked.see(Odd.STATEFUL, again)
    return second


def _second(model: nn.Module, left: Left, asked: Witness) -> Second | None:
    answers = ask(model, left.x)
    changed, why = differ(answers, left.outputs), _why(model, left.x, left.rows, answers)
    for kind, rows in why.items():
        asked.see(kind, rows)
    if Odd.RANDOM in why:
        return None
    if not why:  # else that is what changes them
        asked.see(Odd.STATEFUL, left.rows[changed])
    asked.see(Odd.NON_FINITE, left.rows[changed & ~finite(answers)])
    return Second(left.rows, classes(answers), changed)


def _why(model: nn.Module, x: Tensor, rows: Tensor, answers: Tensor) -> dict[Odd, Tensor]:
    """What changes the answers [R,K] for x [R,C,H,W], and for which of the rows [R], by a sample of
    them: nothing, chance, other images in the batch, a gradient asked for, or earlier questions."""
    places = torch.arange(0, len(rows), max(1, len(rows) // SAMPLE_IMAGES), device=rows.device)
    places = places[:SAMPLE_IMAGES].flip(0)
    x_some, some = x[places], rows[places]
    once = ask(model, x_some)
    changed_by = {Odd.RANDOM: differ(once, ask(model, x_some))}
    if not changed_by[Odd.RANDOM].any():
        changed_by = {
            Odd.MODE: differ(once, ask(model, x_some, gradient=True)),
            Odd.BATCH: differ(once, answers[places]) | _alone(model, x_some, once),
        }
        if changed_by[Odd.BATCH].any() and differ(answers, ask(model, x)).any():
            changed_by = {Odd.STATEFUL: changed_by[Odd.BATCH]}
    return {kind: some[changed] for kind, changed in changed_by.items() if changed.any()}


def _alone(model: nn.Module, x: Tensor, together: Tensor) -> Tensor:
    """bool [B]: of the first few images, whether each alone is answered otherwise."""
    changed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for place in range(min(IMAGES_ALONE, len(x))):
        one = slice(place, place + 1)
        changed[one] = differ(together[one], ask(model, x[one]))
    return changed


def overrule(columns: Columns, attack: str, chunk: Chunk, second: Second) -> Columns:
    """An attack's columns: broken, too, where the model withstood thanks to something else than the
    image, and the copy says another class than the label."""
    if BROKEN + attack not in columns:
        return columns
    rows, broken = second.rows, columns[BROKEN + attack].clone()
    wrong = second.changed & (second.classes != chunk.y[rows]) & ~broken[rows]
    prediction = columns[PREDICTION + attack].clone()
    broken[rows[wrong]], prediction[rows[wrong]] = True, second.classes[wrong]
    return columns | {BROKEN + attack: broken, PREDICTION + attack: prediction}


def margin_step(model: nn.Module, chunk: Chunk, threat: Threat) -> tuple[Tensor, Tensor]:
    """Images [B,C,H,W] one step of eps along the margin's gradient, which logits of any scale have
    (the cross-entropy of very small ones knows no class from another), and the outputs there."""
    with torch.enable_grad():
        leaf = chunk.x.detach().clone().requires_grad_(True)
        rise = margin(at_least_float32(model(leaf)), chunk.y).sum()
        gradient = (
            torch.autograd.grad(rise, leaf, allow_unused=True)[0] if rise.requires_grad else None
        )
    way = torch.zeros_like(leaf) if gradient is None else gradient.nan_to_num(0, 0, 0)
    x = threat.project(threat.ascend(chunk.x, way, threat.eps), chunk.x)
    return x, ask(model, x)


def gradients(model: nn.Module, chunk: Chunk, threat: Threat) -> tuple[Tensor, Left]:
    """The largest absolute input gradient of each clean image [B], 0 where the loss is exactly 0;
    and what is answered with noise.

    Notes gradients that are not finite, 0, or misleading on clean images and, as an attack's start
    is, on ones with noise of eps, so that this needs no attack to be seen.
    """
    draw = Draw(*chunk.key, "look", total=len(chunk.y))
    largest, _ = _gradient(model, chunk, chunk.x, threat)
    noisy = threat.project(threat.random_point(chunk.x, draw), chunk.x)
    _, outputs = _gradient(model, chunk, noisy, threat)
    return largest, Left(torch.arange(len(noisy), device=noisy.device), noisy, outputs)


def _gradient(model: nn.Module, chunk: Chunk, x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """The largest absolute gradient [B] at x, and the outputs there [B,K]."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        outputs = at_least_float32(model(leaf))
        losses = F.cross_entropy(outputs, chunk.y, reduction="none")
        gradient = (
            torch.autograd.grad(losses.sum(), leaf, allow_unused=True)[0]
            if losses.requires_grad
            else None
        )
    gradient = torch.zeros_like(leaf) if gradient is None else gradient
    losses, sound = losses.detach(), finite(outputs.detach())
    largest = gradient.abs().flatten(1).amax(1)
    # 1 - p has been rounded to 0: what is left of the gradient has lost the label's own logit
    largest = largest.masked_fill(losses == 0, 0)
    if chunk.witness is not None:
        chunk.witness.see(Odd.NON_FINITE, ~sound)
        chunk.witness.see(Odd.GRADIENT, sound & ~largest.isfinite())
        chunk.witness.see(Odd.FLAT, sound & (largest == 0))
        if threat.eps > 0:
            chunk.witness.see(Odd.MISLED, _misled(model, chunk, x, gradient, losses, threat))
    return largest, outputs.detach()


def _misled(
    model: nn.Module, chunk: Chunk, x: Tensor, gradient: Tensor, losses: Tensor, threat: Threat
) -> Tensor:
    """bool [B]: a step of eps/4 along the gradient gives no higher loss than one against it, where
    by the gradient it is one that rounding cannot hide."""
    way = gradient.nan_to_num(0, 0, 0)
    above, below = (threat.ascend(x, to, threat.eps / 4).clamp(0, 1) for to in (way, -way))
    more, less = (
        F.cross_entropy(ask(model, other), chunk.y, reduction="none") for other in (above, below)
    )
    expected = (gradient * (above - below)).flatten(1).sum(1)
    seen = (expected > 0.05 * losses) & (expected > 1e-5) & expected.isfinite()
    return seen & more.isfinite() & less.isfinite() & (more <= less)
