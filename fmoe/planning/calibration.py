"""What this machine reaches of its peak in a configuration's own training: a step is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from fmoe import assembly
from fmoe.attacks import PGD, Attack, Clean
from fmoe.config import Config, Phase
from fmoe.cpus import usable_cpus
from fmoe.data import Split
from fmoe.data.batches import Batches
from fmoe.data.facts import Facts
from fmoe.numerics.worker import Worker
from fmoe.planning import passes
from fmoe.planning.machines import Machine
from fmoe.planning.plan import Reached
from fmoe.planning.work import Work, of_expert, parts
from fmoe.training import Trainer
from fmoe.training.validation import validation_accuracies

ROUNDS = 3
PASSES = 2  # of the attack that is timed
JUDGED = 100  # images


def reached(config: Config, facts: Facts, machine: Machine, workers: int) -> dict[str, Reached]:
    """By phase, on one of so many workers that share this machine."""
    config = machine.computed(config)
    before, threads = torch.get_num_threads(), max(1, usable_cpus() // workers)
    found: dict[str, Reached] = {}
    try:
        torch.set_num_threads(threads)
        share = max(2 * config.joint.accumulate, config.joint.batch_size // workers)
        phase = config.joint.model_copy(update={"batch_size": share})
        model, work = assembly.seeded_mixture(config, facts), parts(config, facts).all
        found["joint"] = of_phase(model, work, phase, config, facts, machine)
        if config.experts.pretrained:
            torch.set_num_threads(1 if machine.name == "cpu" else threads)
            member = config.experts.pretrained[0]
            network = assembly.seeded_expert(config, member, config.seed, facts)
            work = of_expert(config, facts, member[0])
            given = work, config.experts.train, config, facts, machine
            found["experts"] = of_phase(network, *given)
    finally:
        torch.set_num_threads(before)
    return found


def of_phase(
    model: nn.Module, work: Work, phase: Phase, config: Config, facts: Facts, machine: Machine
) -> Reached:
    images = torch.randint(256, (phase.batch_size, *facts.shape), dtype=torch.uint8)
    split = Split(images, torch.arange(len(images)) % len(facts.classes))
    phase = phase.model_copy(update={"warm_start": False, "sizes": [], "awp": 0.0, "guard": False})
    pgd = PGD(eps=0.01, steps=PASSES)
    clean, attacked = (
        step_seconds(model, phase, attack, split, config) for attack in (Clean(), pgd)
    )
    judged = split[:JUDGED]
    checked = {"pgd": pgd}
    seconds = timed(lambda: validation_accuracies(model, judged, checked, 0, Worker()))
    peak, low = machine.peaks[config.precision], machine.peaks["float32"]
    crafted = max(attacked - clean, 0.1 * clean) / PASSES
    judging = PASSES * work.crafting + work.forward
    return Reached(
        crafting=len(split) * work.crafting / crafted / peak,
        training=len(split) * passes.of_loss(phase.loss) * work.training / clean / peak,
        judging=len(judged) * judging / seconds / low,
    )


def step_seconds(
    model: nn.Module, phase: Phase, attack: Attack, split: Split, config: Config
) -> float:
    batches = Batches(split, phase.batch_size, config.data.augment, 0)
    made = Trainer(model, phase, attack, batches, Worker(), config.numerics, "all")  # type: ignore[arg-type]
    return timed(lambda: [made.step(0, x, y) for x, y in batches.epoch(0)])


def timed(run: Callable[[], object]) -> float:
    """Median seconds, the first time left out."""
    times = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])
