"""A study's trials under Ray Tune: schedulers, the searcher, what Tune says of its trials.

Tune keeps pickles of its own state; they go to a private folder of this process, nobody reads
them, and they are deleted with it. A resume goes by the study's JSON files (`fmoe.study`).
"""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune import schedulers
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from fmoe.errors import UserError
from fmoe.on_ray.session import Resources, grows
from fmoe.on_ray.suggest import Suggestions, Unpickled, as_asked
from fmoe.on_ray.train import interruptible
from fmoe.on_ray.trials import Setting, alone, together
from fmoe.search_space import Space
from fmoe.study import Trial

GROWN = 4  # trials at once for which an autoscaler may bring GPUs
LOST = 1  # how often a trial whose process or node was lost is tried again
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of each trial
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
}


class Listener(Protocol):
    """Hears of a study's trials, in this process."""

    def begun(self, trial: Trial) -> None: ...
    def reported(self, trial: Trial) -> None: ...
    def ended(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class Share:
    """What a trial gets: so many workers with these resources; `at_once` trials fit the cluster."""

    workers: int
    resources: Resources
    at_once: int

    @classmethod
    def of_cluster(cls, workers: int, gpus: float | None) -> Share:
        """gpus: of each worker; None gives each one where the cluster has some.

        Raises `UserError` where not even one trial fits.
        """
        total = ray.cluster_resources()
        if gpus is None:
            gpus = 1 if total.get("GPU", 0) >= 1 else 0
        if workers > 1:
            gpus = int(gpus) if gpus == int(gpus) else _no_fraction(gpus)
        kind, each = ("GPU", float(gpus)) if gpus else ("CPU", 1.0)
        slots = int(total.get(kind, 0) / each + 1e-9)
        slots = min(slots, int(total.get("CPU", 0)))
        if grows() and gpus:  # more nodes come when trials wait
            return cls(workers, Resources(1, gpus), max(slots // workers, GROWN))
        if workers > slots:
            raise UserError(
                f"--workers-per-trial {workers}: the cluster has room for {slots} "
                f"({int(total.get('CPU', 0))} CPUs, {int(total.get('GPU', 0))} GPUs)"
            )
        return cls(workers, Resources(1, gpus), slots // workers)


def _no_fraction(gpus: float) -> int:
    raise UserError(f"--gpus-per-worker {gpus:g}: several workers of a trial need whole GPUs")


def search(
    space: Space,
    suggestions: Suggestions,
    done: Sequence[Trial],
    setting: Setting,
    share: Share,
    listener: Listener,
    *,
    seconds: float | None,
    over: Callable[[Trial], bool],
) -> None:
    """Runs the trials that `suggestions` gives, to an end each; a failed one ends nothing else.

    done: trials of earlier tries, which the scheduler takes into account. over: whether a trial
    has trained to its end. seconds: when the study must be over.
    """
    if not suggestions.more:
        return
    os.environ.update({key: os.environ.get(key, value) for key, value in SETTINGS.items()})
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are told by our own lines
    nested = share.workers > 1
    trainable = tune.with_parameters(together if nested else alone, setting=setting)
    needs = (
        {"node:__internal_head__": 0.001}  # its workers ask for theirs themselves
        if nested
        else {"CPU": share.resources.cpus, "GPU": share.resources.gpus}
    )
    relay = Relay(suggestions, listener, seconds, over)
    chosen = space.study.scheduler
    # Ray's PBT takes no searcher: its population is drawn at once
    pbt = chosen.takes_over
    if pbt and sum(node["Alive"] for node in ray.nodes()) > 1:
        raise UserError(
            f"scheduler: {chosen.kind}: trials hand their weights over through a folder of one "
            "machine, and this cluster has several; asha and fifo do without"
        )
    population = [suggestions.ask() for _ in range(suggestions.more)] if pbt else []
    with tempfile.TemporaryDirectory(prefix="fmoe-tune-") as private:
        tuner = tune.Tuner(
            tune.with_resources(trainable, needs),
            param_space={"asked": tune.grid_search(population)} if pbt else None,
            tune_config=tune.TuneConfig(
                search_alg=None if pbt else suggestions,
                scheduler=scheduler(space, done),
                num_samples=1 if pbt else suggestions.more,
                max_concurrent_trials=share.at_once,
                reuse_actors=not nested,
                time_budget_s=seconds,
            ),
            run_config=tune.RunConfig(
                name="study",
                storage_path=private,
                verbose=0,
                callbacks=[relay],
                failure_config=tune.FailureConfig(max_failures=LOST),
            ),
        )
        interruptible(tuner.fit)
    relay.settle()


def scheduler(space: Space, done: Sequence[Trial]) -> TrialScheduler:
    """done: trials of earlier tries."""
    made = space.study.scheduler.build(Schedulers(space, done))
    assert isinstance(made, TrialScheduler)
    return made


@dataclass(frozen=True)
class Schedulers:
    """Ray Tune's schedulers over a space; see `fmoe.schedulers.RayTune`."""

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
        if not baseline:
            return decision
        self.spared |= decision != TrialScheduler.CONTINUE
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


class Relay(Unpickled, tune.Callback):  # type: ignore[misc]
    """Tune's events as changes of our trials."""

    def __init__(
        self,
        suggestions: Suggestions,
        listener: Listener,
        seconds: float | None,
        over: Callable[[Trial], bool],
    ):
        self.suggestions, self.listener, self.over = suggestions, listener, over
        self.everyone: dict[int, Trial] = {}
        self.known: set[int] = set()
        self.change: dict[int, int] = {}
        self.deadline = time.monotonic() + seconds if seconds else None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._ours(trial)
        if ours.number not in self.known:  # PBT starts a trial again and again
            self.known.add(ours.number)
            ours.started = time.time()
            self.listener.begun(ours)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        ours = self._ours(trial)
        ours.process = result["process"]
        if "error" in result:
            ours.error, ours.experts = str(result["error"]), dict(result["experts"])
            return
        if result["adopted"] is not None:
            self._inherit(ours, result["adopted"], result["epoch"])
        if result["epoch"] != len(ours.history):
            return  # a resumed trial goes through its history again
        ours.experts = dict(result["experts"])
        ours.history.append(dict(result["history"]))
        self.listener.reported(ours)

    def _inherit(self, ours: Trial, adopted: dict[str, Any], epoch: int) -> None:
        """PBT: at the first report after the trial took over another's weights."""
        if adopted["change"] == self.change.get(ours.number):
            return
        self.change[ours.number] = adopted["change"]
        ours.values = json.loads(adopted["values"])
        ours.history = [dict(metrics) for metrics in adopted["history"]]
        ours.changes.append({"epoch": epoch, "parent": adopted["parent"], "values": ours.values})

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._ours(trial)
        late = self.deadline is not None and time.monotonic() >= self.deadline
        if ours.error:
            ours.status = "failed"
        else:
            ours.status = "finished" if self.over(ours) else "stopped" if late else "pruned"
        self._end(ours)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        ours = self._ours(trial)
        ours.status, ours.error = "failed", reason(trial)
        self._end(ours)

    def settle(self) -> None:
        """Tune's clock ends a trial that was just starting without a word."""
        for ours in self.everyone.values():
            if ours.status == "running":
                ours.status = "stopped"
                self._end(ours)

    def _ours(self, trial: Any) -> Trial:
        number = trial.config["asked"]["number"]
        self.everyone.setdefault(number, self.suggestions.under_way[number])
        return self.everyone[number]

    def _end(self, ours: Trial) -> None:
        ours.ended = time.time()
        self.suggestions.tell(ours)
        self.listener.ended(ours)


def reason(trial: Any) -> str:
    """The last line of what went wrong."""
    try:
        with open(trial.error_file) as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, TypeError):
        return "unknown: Ray kept no error"
    return lines[-1][:500] if lines else "unknown"
