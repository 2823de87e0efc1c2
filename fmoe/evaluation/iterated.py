"""PGD as the evaluation runs it: an image leaves the batch at the step at which it breaks.

Same verdicts as running on, less work: an image counts as broken if any iterate breaks it. Each
step's forward pass serves both the gradient and the judgement of the iterate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmoe.attacks import Objective, ball, objective_loss
from fmoe.draw import Draw
from fmoe.evaluation.chunk import Chunk, Columns, assert_within, verdict
from fmoe.evaluation.outputs import NONE, classes
from fmoe.evaluation.witness import Left, Odd, Witness
from fmoe.precision import at_least_float32

STEPS = 20

Pass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images [b,C,H,W], their rows in the chunk) to (what is ascended [b], outputs judged [b,K])."""


@dataclass(frozen=True)
class Attacked:
    """step: int16 [B], the iterate that broke the image (0: the start), -1 where none did.

    prediction: int64 [B], of the last iterate judged. x: those iterates [B,C,H,W].
    """

    step: Tensor
    prediction: Tensor
    x: Tensor

    @property
    def broken(self) -> Tensor:
        return self.step >= 0


def ascending(model: nn.Module, y: Tensor, loss: Objective = "ce") -> Pass:
    """The model itself, white box."""

    def run(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        outputs = at_least_float32(model(x))
        return objective_loss(loss, outputs, y[rows], None), outputs

    return run


def until_broken(
    run: Pass,
    chunk: Chunk,
    start: Tensor,
    *key: str | int,
    eps: float,
    steps: int = STEPS,
    step_size: float | None = None,
    random_start: bool = True,
) -> Attacked:
    """PGD on the images `start` (bool [B]); step_size is eps/4 by default.

    key: of the draws, which are those of the whole chunk. Gradients that are not finite count as 0.
    """
    rows = first = start.nonzero()[:, 0]
    step = torch.full((len(chunk.y),), -1, dtype=torch.int16, device=chunk.y.device)
    prediction, x_adv = chunk.y.clone(), chunk.x.clone()
    if len(rows) == 0:
        return Attacked(step, prediction, x_adv)
    size = eps / 4 if step_size is None else step_size
    x = chunk.x[rows]
    lower, upper = ball(x, eps)
    if random_start:
        noise = Draw(*chunk.key, *key, total=len(chunk.y), rows=rows).noise(x)
        x = (x + eps * noise).clamp(lower, upper)
    answers: Tensor | None = None
    for iterate in range(steps + 1):
        last = iterate == steps
        with torch.set_grad_enabled(not last):
            x = x.detach().requires_grad_(not last)
            loss, outputs = run(x, rows)
            said = classes(outputs.detach())
            said = chunk.confirmed(said, x.detach(), chunk.y[rows])
            # an attack on a part that does not depend on the image has no gradient
            (gradient,) = (
                torch.autograd.grad(loss.sum(), x, allow_unused=True)
                if loss.requires_grad
                else (None,)
            )
        x = x.detach()
        prediction[rows], x_adv[rows] = said, x
        if answers is None:
            answers = outputs.new_zeros(len(chunk.y), outputs.shape[1]).detach()
        answers[rows] = outputs.detach()
        wrong = said != chunk.y[rows]
        step[rows[wrong]] = iterate
        left = ~wrong
        if last or not left.any():
            break
        rows, lower, upper = rows[left], lower[left], upper[left]
        x = x[left]
        if gradient is not None:
            gradient = gradient[left]
        if chunk.witness is not None:
            _note(chunk.witness, rows, gradient)
        if gradient is not None:
            x = (x + size * gradient.nan_to_num_(0, 0, 0).sign()).clamp(lower, upper)
    assert_within(x_adv, chunk.x, eps)
    if chunk.witness is not None:
        assert answers is not None
        chunk.witness.see(Odd.NON_FINITE, prediction == NONE)
        chunk.witness.left(Left(first, x_adv[first], answers[first]))
    return Attacked(step, prediction, x_adv)


def _note(witness: Witness, rows: Tensor, gradient: Tensor | None) -> None:
    """gradient [b,C,H,W] of the images `rows` [b]; None where there is none."""
    if gradient is None:
        witness.see(Odd.FLAT, rows)
        return
    largest = gradient.abs().flatten(1).amax(1)
    witness.see(Odd.FLAT, rows[largest == 0])
    witness.see(Odd.GRADIENT, rows[~largest.isfinite()])


def one_after_another(
    runs: Iterable[tuple[tuple[str | int, ...], Pass]],
    chunk: Chunk,
    start: Tensor,
    name: str,
    *,
    eps: float,
    steps: int = STEPS,
) -> Columns:
    """Several attacks (key of the draws, pass) as the attack `name`, each on what the ones before
    it have left of `start`; `by.NAME` int8 [B] is the place of the one that broke an image."""
    alive = start
    said, by = chunk.y.clone(), torch.full_like(chunk.y, -1, dtype=torch.int8)
    for place, (key, run) in enumerate(runs):
        found = until_broken(run, chunk, alive, name, *key, eps=eps, steps=steps)
        said = torch.where(found.broken, found.prediction, said)
        by = by.masked_fill(found.broken, place)
        alive = alive & ~found.broken
    return verdict(name, start, start & ~alive, said) | {f"by.{name}": by}
