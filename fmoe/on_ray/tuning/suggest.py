"""The searcher that Ray Tune asks: Optuna's samplers over a checked space.

Ray's own OptunaSearch keeps its state in a pickle. Here Optuna is told again what the study's JSON
files say, so that a resume reads nothing else.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from fmoe.errors import UserError
from fmoe.tuning.optuna_trials import course, frozen_trial, new_study, outcome
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial

logger = logging.getLogger(__name__)
TRIES = 100


def as_asked(space: Space, number: int, values: dict[str, Any]) -> dict[str, Any]:
    config = space.config(values).model_dump_json()
    return {"number": number, "values": json.dumps(values), "config": config}


def sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler | None:
    """None where nothing is drawn."""
    searcher = space.study.searcher
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return None if searcher.in_order else searcher.sampler(seed)


class Unpickled:
    """Tune pickles whatever it is given, and nobody reads that: nothing of this object goes in."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __copy__(self) -> Unpickled:
        return self

    def __deepcopy__(self, _memo: Any) -> Unpickled:
        return self


class Suggestions(Unpickled, Searcher):  # type: ignore[misc]
    """Gives Tune the trials of a study, numbered.

    again: trials that a killed driver left under way; they keep their number and their values.
    done: trials of earlier tries. total: of the whole study.
    """

    def __init__(self, space: Space, done: Sequence[Trial], again: Sequence[Trial], total: int):
        super().__init__()
        self.space, self.again, self.total = space, list(again), total
        self.under_way: dict[int, Trial] = {}
        self.asked: dict[int, optuna.Trial] = {}
        self.next = 1 + max((trial.number for trial in (*done, *again)), default=-1)
        seed = (space.base.seed * 100_003 + self.next) % 2**31
        self.optuna = new_study(space, sampler(space, seed))
        for trial in done:
            self._add(trial)
        first = int(space.study.has_baseline)
        searcher = space.study.searcher
        listed = searcher.trials(space) if searcher.in_order else iter(())
        self.fixed = {first + place: v for place, v in enumerate(islice(listed, total))}

    @property
    def more(self) -> int:
        """How many trials are to come."""
        if self.fixed:
            self.total = min(self.total, max(self.fixed) + 1)
        return len(self.again) + max(0, self.total - self.next)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"asked": self.ask()}

    def ask(self) -> dict[str, Any]:
        """The next trial, as its process is told of it."""
        trial = self.again.pop(0) if self.again else self._new()
        trial.asked = time.time()
        self.under_way[trial.number] = trial
        return as_asked(self.space, trial.number, trial.values)

    def _new(self) -> Trial:
        number = self.next
        self.next += 1
        if number == 0 and self.space.study.has_baseline:
            return Trial(0, {})
        if self.fixed:
            return Trial(number, self.fixed[number])
        for _ in range(TRIES):
            asked = self.optuna.ask()
            values = self.space.sample(asked)
            try:
                self.space.config(values)
            except UserError as error:
                logger.warning("%s; drawing again", error)
                self.optuna.tell(asked, state=TrialState.FAIL)
                continue
            self.asked[number] = asked
            frozen = self.optuna.trials[asked.number]
            return Trial(number, values, search=dict(frozen.system_attrs))
        raise UserError(f"{self.space.source}: {TRIES} draws in a row gave no configuration")

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tune says so before its callbacks hear of it: `tell` is called with the outcome."""

    def tell(self, trial: Trial) -> None:
        """The outcome of a trial that has ended."""
        asked = self.asked.pop(trial.number, None)
        if asked is None:
            self._add(trial)
            return
        state, values = outcome(self.space, trial)
        for step, value in course(self.space, trial).items():
            asked.report(value, step)
        self.optuna.tell(asked, values, state)

    def _add(self, trial: Trial) -> None:
        frozen = frozen_trial(self.space, trial)
        if frozen is not None:
            self.optuna.add_trial(frozen)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's own files are what a resume reads."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError
