"""A study's scheduler as Ray Tune's: what `fmoe.tuning.schedulers` names is made here."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.tune import schedulers
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from fmoe.errors import UserError
from fmoe.on_ray.tuning.suggest import Unpickled, as_asked
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial


def scheduler(space: Space, done: Sequence[Trial]) -> TrialScheduler:
    """done: trials of earlier tries."""
    made = space.study.scheduler.build(Schedulers(space, done))
    assert isinstance(made, TrialScheduler)
    return made


@dataclass(frozen=True)
class Schedulers:
    """Ray Tune's schedulers over a space; see `fmoe.tuning.schedulers.RayTune`."""

    space: Space
    done: Sequence[Trial]

    @property
    def goal(self) -> dict[str, str]:
        metric, direction = next(iter(self.space.study.metrics.items()))
        return {"time_attr": "epochs", "metric": metric, "mode": direction}

    def stock(self, name: str, **settings: Any) -> TrialScheduler:
        kind = type(name, (KeepsBaseline, getattr(schedulers, name)), {})
        return self._baselined(kind(**self.goal, **settings))

    def to_the_end(self) -> TrialScheduler:
        return schedulers.FIFOScheduler()

    def halving(self, *, grace: int, reduction: int) -> TrialScheduler:
        made = Halving(
            **self.goal,
            max_t=max(self.space.epochs, grace),
            grace_period=grace,
            reduction_factor=reduction,
        )
        for trial in self.done:
            made.remember(trial)
        return self._baselined(made)

    def population(self, *, every: int, quantile: float) -> TrialScheduler:
        return Population(
            self.space,
            **self.goal,
            perturbation_interval=every,
            quantile_fraction=quantile,
            custom_explore_fn=lambda config: config,
            log_config=False,
            require_attrs=False,
        )

    def _baselined(self, made: Any) -> TrialScheduler:
        made.keep_first = self.space.study.has_baseline
        return made


class KeepsBaseline:
    """Of a scheduler: the recipe as it stands is measured against, so it is never pruned.

    hears_on: whether the scheduler hears of it after it would have stopped it; Ray's may not
    expect to.
    """

    keep_first = False
    hears_on = False
    spared = False

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        baseline = self.keep_first and trial.config["asked"]["number"] == 0
        if baseline and self.spared and not self.hears_on:
            return str(TrialScheduler.CONTINUE)
        decision = str(super().on_trial_result(controller, trial, result))  # type: ignore[misc]
        if not baseline or decision != TrialScheduler.STOP:
            return decision
        self.spared = True
        return str(TrialScheduler.CONTINUE)


class Halving(KeepsBaseline, AsyncHyperBandScheduler):  # type: ignore[misc]
    """Ray's ASHA."""

    hears_on = True

    def remember(self, trial: Trial) -> None:
        """A trial of an earlier try fills the rungs that it reached."""
        stand_in = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        self.on_trial_add(None, stand_in)
        for index, epoch in enumerate(trial.history):
            AsyncHyperBandScheduler.on_trial_result(
                self, None, stand_in, {**epoch, "epochs": index + 1}
            )


class Population(Unpickled, PopulationBasedTraining):  # type: ignore[misc]
    """Ray's PBT over our values; trials keep their number."""

    def __init__(self, space: Space, **settings: Any):
        super().__init__(**settings)
        self.space, self.draw, self.changes = space, random.Random(space.base.seed), 0

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """At its last epoch a trial neither takes over nor gives: nothing is left to train."""
        if result.get("epochs", 0) >= self.space.epochs:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(controller, trial, result))

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> tuple[dict[str, Any], Any]:
        own, other = trial.config["asked"], trial_to_clone.config["asked"]
        values = json.loads(other["values"])
        try:
            asked = as_asked(self.space, own["number"], self.space.explore(values, self.draw))
        except UserError:  # two values that do not go together: the weights alone move
            asked = as_asked(self.space, own["number"], values)
        self.changes += 1
        return {"asked": {**asked, "parent": other["number"], "change": self.changes}}, {}
