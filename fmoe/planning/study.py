"""The plan of a study: every trial in full, and each expert that trials share once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from fmoe.config import Config
from fmoe.data.facts import Facts, Identity
from fmoe.planning.plan import HOUR, Counts, Planner, Setting
from fmoe.training.expert_store import expert_key
from fmoe.tuning.search_space import Space

MOST_SAMPLED = 20
"""Trials that are planned one by one; the rest is their mean."""


def plan(
    space: Space,
    facts: Facts,
    images: Counts,
    setting: Setting,
    workers_per_trial: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Hours on all workers, `workers_per_trial` a trial. Nothing is pruned: an upper bound."""
    trials = space.most
    own = replace(setting, workers=workers_per_trial)
    at_once = max(1, setting.workers // workers_per_trial)
    base = Planner(space.base, facts, images, own).plan()
    trial_hours, keys = [], dict[str, float]()
    sampled = list(islice(configs(space), min(trials, MOST_SAMPLED)))
    for number, config in enumerate(sampled, 1):
        planner = Planner(config, facts, images, own)
        most = min(base.best.expert, len(config.experts.members))
        peers = max(n for n in range(1, most + 1) if workers_per_trial % n == 0)
        *_, hours = planner.joint(workers_per_trial // peers, peers)
        trial_hours.append(hours + planner.evaluation()[0] / HOUR)
        identity = Identity(facts, "0" * 64, images.val)
        for member, seconds in planner.experts():
            keys[expert_key(config, member, identity)] = seconds
        progress(number)
    pool = sum(keys.values()) / HOUR / setting.workers
    trial = sum(trial_hours) / len(trial_hours)
    return {
        **base.to_json(),
        "hours": pool + trials * trial / at_once,
        "hours_by_phase": {"pool": pool, "trials": trials * trial / at_once},
        "trials": trials,
        "trials_at_once": at_once,
        "hours_per_trial": trial,
        "experts": len(keys),
    }


def configs(space: Space) -> Iterator[Config]:
    """The recipe itself, where it is a trial, and what the space gives."""
    if space.study.has_baseline:
        yield space.base
    yield from space.samples
