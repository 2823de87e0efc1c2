"""A study's trials under Ray Tune.

Tune keeps pickles of its own state; they go to a private folder of this process, nobody reads
them, and they are deleted with it. A resume goes by the study's JSON files (`fmoe.tuning.trials`).
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence

import ray
from ray import tune

from fmoe.errors import UserError
from fmoe.on_ray.train import interruptible
from fmoe.on_ray.tuning.relay import Listener, Relay
from fmoe.on_ray.tuning.schedulers import scheduler
from fmoe.on_ray.tuning.share import Share
from fmoe.on_ray.tuning.suggest import Suggestions
from fmoe.on_ray.tuning.trials import TrialInputs, alone, together
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial

RETRIES_WHEN_LOST = 1  # how often a trial whose process or node was lost is tried again
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # a trial that fails has no metric to report; Tune would end the whole study for it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of each trial
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "10",
}


def search(
    space: Space,
    suggestions: Suggestions,
    done: Sequence[Trial],
    inputs: TrialInputs,
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
    os.environ.update({key: os.environ.get(key, value) for key, value in TUNE_ENVIRONMENT.items()})
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are told by our own lines
    nested = share.workers > 1
    trainable = tune.with_parameters(together if nested else alone, inputs=inputs)
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
                failure_config=tune.FailureConfig(max_failures=RETRIES_WHEN_LOST),
            ),
        )
        interruptible(tuner.fit)
    relay.settle()
