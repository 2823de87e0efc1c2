"""A study's trials as Optuna's: so that a sampler goes on from them, and plots show them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from fmoe import config
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial

optuna.logging.set_verbosity(optuna.logging.ERROR)
STATES = {
    "finished": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def new_study(
    space: Space,
    sampler: optuna.samplers.BaseSampler | None = None,
    *,
    name: str | None = None,
    storage: str | None = None,
) -> optuna.Study:
    """An empty study with the space's directions. storage: Optuna's; by default in memory."""
    ways = {"max": StudyDirection.MAXIMIZE, "min": StudyDirection.MINIMIZE}
    directions = [ways[direction] for direction in space.study.metrics.values()]
    return optuna.create_study(
        sampler=sampler, directions=directions, study_name=name, storage=storage
    )


def as_optuna(space: Space, trials: Sequence[Trial]) -> optuna.Study:
    """Every trial with a figure as a complete one, pruned ones among them: for plots."""
    study = new_study(space)
    for trial in trials:
        frozen = frozen_trial(space, trial, complete=True)
        if frozen is not None and frozen.state == TrialState.COMPLETE:
            study.add_trial(frozen)
    return study


def exported(
    space: Space,
    trials: Sequence[Trial],
    name: str,
    storage: str | None = None,
) -> optuna.Study:
    """Every trial that the space could have drawn, whatever became of it: for Optuna's own tools.

    storage: Optuna's; by default in memory.
    """
    study = new_study(space, name=name, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names of metrics are experimental
        study.set_metric_names(list(space.study.metrics))
    for trial in trials:
        if trial.status in STATES and (frozen := frozen_trial(space, trial)) is not None:
            told = {"trial": trial.number, "status": trial.status, "error": trial.error}
            frozen.user_attrs.update({key: value for key, value in told.items() if value})
            study.add_trial(frozen)
    return study


def outcome(
    space: Space, trial: Trial, *, complete: bool = False
) -> tuple[TrialState, list[float] | None]:
    """Optuna's state, and the values where it is COMPLETE. (It finds those of PRUNED trials in
    their course.)"""
    figures = trial.figures(space.study.metrics)
    state = STATES[trial.status]
    if figures is None:
        return TrialState.FAIL, None
    if state == TrialState.PRUNED and (complete or len(figures) > 1):
        state = TrialState.COMPLETE  # Optuna prunes for one metric only
    return state, list(figures.values()) if state == TrialState.COMPLETE else None


def course(space: Space, trial: Trial) -> dict[int, float]:
    """The metric after each epoch; nothing where there are several."""
    if len(space.study.metrics) > 1:
        return {}
    (name,) = space.study.metrics
    return {index: epoch[name] for index, epoch in enumerate(trial.history)}


def frozen_trial(space: Space, trial: Trial, *, complete: bool = False) -> FrozenTrial | None:
    """None where the space could not have drawn the trial's values."""
    replay = Replay(trial.values or own_values(space))
    try:
        space.sample(replay)
    except (KeyError, ValueError):
        return None
    state, values = outcome(space, trial, complete=complete)
    steps = course(space, trial)
    if state == TrialState.PRUNED:  # as `optuna.Study.tell` leaves it
        values = list(steps.values())[-1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = optuna.trial.create_trial(
            state=state,
            values=values,
            params=replay.params,
            distributions=replay.distributions,
            system_attrs=trial.search,
            intermediate_values=steps,
        )
    frozen.datetime_start = datetime.fromtimestamp(trial.started)
    if trial.ended:
        frozen.datetime_complete = datetime.fromtimestamp(trial.ended)
    return frozen


def own_values(space: Space) -> dict[str, Any]:
    """What the recipe itself has at the space's paths."""
    tree, values = space.base.plain(), {}
    for domain in space.domains:
        try:
            values[domain.path] = config.get(tree, domain.path)
        except KeyError:
            continue
    return values


class Replay:
    """Stands in for an Optuna trial and gives values that are known; keeps what it was asked.

    Raises `KeyError` for a path without a value, `ValueError` for one that cannot be drawn.
    """

    def __init__(self, values: dict[str, Any]):
        self.values = values
        self.params: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def _keep(self, name: str, value: Any, distribution: BaseDistribution) -> Any:
        if not distribution._contains(distribution.to_internal_repr(value)):
            raise ValueError(f"{name}: {value!r} is not in the space")
        self.params[name], self.distributions[name] = value, distribution
        return value

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        value = self.values[name]
        for coded in choices:
            if same(json.loads(coded), value):
                return str(self._keep(name, coded, CategoricalDistribution(choices)))
        raise ValueError(f"{name}: {json.dumps(value)} is not in the space")

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        value = float(self.values[name])
        return float(self._keep(name, value, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self._keep(name, int(self.values[name]), IntDistribution(low, high)))


def same(a: Any, b: Any) -> bool:
    """Whether two JSON-like values are one: a recipe's 0.0 is a space's 0, and no `false`."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
