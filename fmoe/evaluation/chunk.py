"""What the stages of an evaluation take and give: a chunk of images, columns of verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fmoe.attacks.threat import Threat
from fmoe.evaluation.outputs import classes
from fmoe.evaluation.witness import Aside, Witness

ROUNDING = 1e-6
BROKEN, ATTACKED, PREDICTION = "broken.", "attacked.", "prediction."
"""Before an attack's name: its columns."""
BY = "by."
"""Before the name of an attack of several parts: int8 [B], the place of the part that broke an
image, -1 where none did."""
WEIGHTS = "weights."
"""Before `clean` or `pgd`: the gate's weights [B,E] there."""
CLEAN = PREDICTION + "clean"


@dataclass(frozen=True)
class Chunk:
    """float images [B,C,H,W] in [0,1], labels [B]; key: seed and place in the data set.

    confirm: what attacked images must break where that is not the network they were crafted on.
    witness: notes what is odd.
    """

    x: Tensor
    y: Tensor
    key: tuple[int | str, ...]
    confirm: Callable[[Tensor], Tensor] | None = None
    witness: Witness | None = None

    def confirmed(self, said: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
        """`said` [b], the classes of x_adv [b,C,H,W]; where they are not y, as `confirm` says."""
        wrong = said != y
        if self.confirm is None or not wrong.any():
            return said
        said = said.clone()
        with torch.no_grad():
            said[wrong] = classes(self.confirm(x_adv[wrong]))
        return said

    def of_another(self) -> Chunk:
        """For attacks on what is not the model: its answers are noted, but not asked for again."""
        aside = self.witness and Aside(self.witness)
        return replace(self, confirm=None, witness=aside)


Columns = dict[str, Tensor]
"""What was found, a row per image: [B, ...] each.

An attack NAME has three: `broken.NAME` (bool; images that an earlier attack broke count as broken
where NAME was not run on them), `attacked.NAME` (bool) and `prediction.NAME` (int64; on the
adversarial image).
"""


@dataclass(frozen=True)
class StageResult:
    """A stage's columns, the flags that a library raised in it, and its seconds."""

    columns: Columns
    flags: list[str]
    seconds: float


def so_far(stages: Mapping[str, StageResult]) -> Columns:
    """The columns of all stages of a chunk that have been run."""
    return {key: column for stage in stages.values() for key, column in stage.columns.items()}


def share(verdicts: Tensor) -> float:
    """Of images for which a verdict (bool) is true; of figures (float) the mean."""
    return verdicts.double().mean().item()


def right(columns: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """bool [B]: classified as labelled, without an attack."""
    return columns[CLEAN].to(y.device) == y


def survivors(columns: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """bool [B]: right, and under every attack so far."""
    alive = right(columns, y)
    for name, verdict in columns.items():
        if name.startswith(BROKEN):
            alive = alive & ~verdict.to(y.device)
    return alive


def gate_weights(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`clean`: of all images [N,E]; `pgd`: of those that were attacked, if any was."""
    told = {}
    for where in ("clean", "pgd"):
        weights, moved = columns.get(WEIGHTS + where), columns.get(ATTACKED + where)
        if weights is not None:
            told[where] = weights if moved is None or not moved.any() else weights[moved]
    return told


def verdict(name: str, start: Tensor, broken: Tensor, prediction: Tensor) -> Columns:
    """An attack's columns. start, broken: bool [B], the images it was run on and broke."""
    return {
        BROKEN + name: broken | ~start,
        ATTACKED + name: start,
        PREDICTION + name: prediction,
    }


def assert_within(x_adv: Tensor, x: Tensor, threat: Threat) -> None:
    distance = threat.distance(x_adv, x).max().item()
    assert distance <= threat.eps + ROUNDING, (
        f"an adversarial image is {distance} away, eps is {threat.eps}"
    )
    assert x_adv.min() >= 0, "an adversarial image leaves [0,1]"
    assert x_adv.max() <= 1, "an adversarial image leaves [0,1]"
