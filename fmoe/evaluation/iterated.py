"""PGD as the evaluation runs it: an image leaves the batch at the step at which it breaks.

Same verdicts as running on, less work: an image counts as broken if any iterate breaks it. Each
step's forward pass serves both the gradient and the judgement of the iterate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmoe.attacks import Objective, climb, objective_loss
from fmoe.attacks.threat import Threat
from fmoe.evaluation.chunk import BY, Chunk, Columns, assert_within, verdict
from fmoe.evaluation.outputs import NONE, classes
from fmoe.evaluation.witness import Left, Odd, Witness
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import at_least_float32

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


class Iterates:
    """Looks at the iterates of the images `rows` [R] of a chunk: each is judged by the outputs of
    the pass that gives its gradient, and goes on where it is not broken."""

    def __init__(self, run: Pass, chunk: Chunk, rows: Tensor):
        self.run, self.chunk, self.rows = run, chunk, rows
        self.step = torch.full((len(chunk.y),), -1, dtype=torch.int16, device=chunk.y.device)
        self.prediction, self.x_adv = chunk.y.clone(), chunk.x.clone()
        self.answers: Tensor | None = None
        self.iterate = 0

    def look(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Gradients that are not finite count as 0."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            loss, outputs = self.run(x, self.rows)
            # an attack on a part that does not depend on the image has no gradient
            (gradient,) = (
                torch.autograd.grad(loss.sum(), x, allow_unused=True)
                if loss.requires_grad
                else (None,)
            )
        left = self._judge(x.detach(), outputs.detach())
        if gradient is not None:
            gradient = gradient[left]
        if self.chunk.witness is not None and len(self.rows):
            _note(self.chunk.witness, self.rows, gradient)
        return left, None if gradient is None else gradient.nan_to_num_(0, 0, 0)

    def last(self, x: Tensor) -> None:
        """Judges what is left after the last step."""
        if len(x):
            with torch.no_grad():
                _, outputs = self.run(x, self.rows)
            self._judge(x, outputs)

    def _judge(self, x: Tensor, outputs: Tensor) -> Tensor:
        """bool [b]: images that withstand, which are the rows from now on."""
        rows, y = self.rows, self.chunk.y[self.rows]
        said = self.chunk.confirmed(classes(outputs), x, y)
        self.prediction[rows], self.x_adv[rows] = said, x
        if self.answers is None:
            self.answers = outputs.new_zeros(len(self.chunk.y), outputs.shape[1])
        self.answers[rows] = outputs
        left = said == y
        self.step[rows[~left]] = self.iterate
        self.iterate += 1
        self.rows = rows[left]
        return left


def until_broken(
    run: Pass,
    chunk: Chunk,
    start: Tensor,
    *key: str | int,
    threat: Threat,
    steps: int = STEPS,
    step_size: float | None = None,
    random_start: bool = True,
) -> Attacked:
    """PGD on the images `start` (bool [B]); step_size is eps/4 by default.

    key: of the draws, which are those of the whole chunk. Gradients that are not finite count as 0.
    """
    rows = start.nonzero()[:, 0]
    iterates = Iterates(run, chunk, rows)
    if len(rows):
        size = threat.eps / 4 if step_size is None else step_size
        x = chunk.x[rows]
        ball = threat.ball(x)
        if random_start:
            draw = Draw(*chunk.key, *key, total=len(chunk.y), rows=rows)
            x = ball.project(threat.random_point(x, draw))
        iterates.last(climb(iterates.look, ball, x, steps=steps, step_size=size))
        assert_within(iterates.x_adv, chunk.x, threat)
        if chunk.witness is not None:
            assert iterates.answers is not None
            chunk.witness.see(Odd.NON_FINITE, iterates.prediction == NONE)
            chunk.witness.left(Left(rows, iterates.x_adv[rows], iterates.answers[rows]))
    return Attacked(iterates.step, iterates.prediction, iterates.x_adv)


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
    threat: Threat,
    steps: int = STEPS,
) -> Columns:
    """Several attacks (key of the draws, pass) as the attack `name`, each on what the ones before
    it have left of `start`; `by.NAME` int8 [B] is the place of the one that broke an image."""
    alive = start
    said, by = chunk.y.clone(), torch.full_like(chunk.y, -1, dtype=torch.int8)
    for place, (key, run) in enumerate(runs):
        attacked = until_broken(run, chunk, alive, name, *key, threat=threat, steps=steps)
        said = torch.where(attacked.broken, attacked.prediction, said)
        by = by.masked_fill(attacked.broken, place)
        alive = alive & ~attacked.broken
    return verdict(name, start, start & ~alive, said) | {BY + name: by}
