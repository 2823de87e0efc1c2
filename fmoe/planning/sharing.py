"""`parallel: auto`: the way to share the joint phase out that a plan says is the best."""

from __future__ import annotations

from fmoe.config import Config, Parallel
from fmoe.data import Images, TrainingData
from fmoe.planning.machines import GPUS, link, machine
from fmoe.planning.plan import Counts, Planner, Setting, best_of

ASSUMED_GPU, ASSUMED_LINK, ON_ONE_MACHINE = "a100", "10gbit", "100gbit"
"""What nobody tells: for other places say `parallel: {data, expert}`, by `fmoe plan`."""


def decided(config: Config, data: TrainingData[Images], workers: int, *, gpu: bool) -> Config:
    """With `parallel` in figures, for so many workers."""
    of = GPUS[ASSUMED_GPU] if gpu else machine("cpu", workers)
    setting = Setting(of, workers, link(ASSUMED_LINK if gpu else ON_ONE_MACHINE))
    images = Counts(len(data.train), len(data.val), 1)
    best = best_of(Planner(config, data.facts, images, setting).ways())
    return config.model_copy(update={"parallel": Parallel(expert=best.expert)})
