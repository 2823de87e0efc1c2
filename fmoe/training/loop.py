"""The epoch generator that both phases run on.

    for epoch in epochs(model, Training(phase, attack, train, val)):
        print(epoch.metrics)

A checkpoint is written before its epoch is yielded, and a resume goes on from the newest one: on
CPU a resumed run gives the same bits as an uninterrupted one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fmoe.attacks import AttackConfig
from fmoe.config import Joint, Phase, Update
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.data.splits import Images
from fmoe.errors import UserError
from fmoe.models.mixture import Mixture
from fmoe.numerics.precision import Numerics
from fmoe.numerics.state import REMEDY
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import DEPLOYED, Begun, Checkpoint, Checkpoints
from fmoe.training import calibration, exchange, memory
from fmoe.training.calibration import Fitting
from fmoe.training.keeping import Keeping, Notice, never
from fmoe.training.metrics import Measured, computed, names
from fmoe.training.selection import best_epoch, over, overfitted
from fmoe.training.trainer import Progress, Trainer
from fmoe.training.validation import choose, validation_accuracies, validation_attacks


@dataclass(frozen=True)
class Epoch:
    """One finished epoch: its metrics, and the best epoch so far by validation."""

    index: int
    metrics: dict[str, float]
    best: int


def check(checkpoint: Checkpoint) -> None:
    """Raises `UserError` where its epochs do not tell what every epoch reports."""
    lacking = sorted({n for epoch in checkpoint.history for n in names() if n not in epoch})
    if lacking:
        raise UserError(
            f"the checkpoint of epoch {checkpoint.epoch} lacks {', '.join(lacking)}: {REMEDY}"
        )


@dataclass(frozen=True)
class Training:
    """What one phase trains by, and on which images: all that decides the weights it ends with."""

    phase: Phase
    attack: AttackConfig
    train: Images
    val: Images
    augment: Augment = Augment()
    seed: int = 0
    numerics: Numerics = Numerics()
    calibration: Fitting | None = None
    """Of the mixture, before an epoch is judged."""

    @property
    def update(self) -> Update:
        return self.phase.update if isinstance(self.phase, Joint) else "all"

    def trainer(self, model: nn.Module, worker: Worker) -> Trainer:
        rank, size = worker.rank, worker.world_size
        batches = Batches(
            self.train,
            self.phase.batch_size,
            self.augment,
            self.seed,
            rank,
            size,
            tuple(self.phase.sizes),
        )
        on_device = batches.to(worker.device)
        return Trainer(
            model, self.phase, self.attack, on_device, worker, self.numerics, self.update
        )


def epochs(
    model: nn.Module,
    training: Training,
    *,
    checkpoints: Checkpoints | None = None,
    worker: Worker | None = None,
    progress: Progress | None = None,
    minutes: float | None = None,
    notice: Notice = never,
) -> Iterator[Epoch]:
    """Trains `model` in place, an epoch an iteration; resumes from the newest checkpoint.

    worker: which of several this process is, and its device. minutes: between two checkpoints
    inside of an epoch; None: only when `notice` says that this worker will end. Epochs that a
    checkpoint already holds are yielded again from its history, so that whoever listens hears of
    every epoch. Raises `NonFiniteLoss` with the step and its draw.
    """
    worker, phase, attack = worker or Worker(), training.phase, training.attack
    trainer = training.trainer(model, worker)
    val = training.val[: phase.validation.images].held().to(worker.device)
    judged_by = validation_attacks(phase, attack)
    history: list[dict[str, float]] = []
    latest, inside = agreed(checkpoints, worker) if checkpoints else (None, None)
    if latest is not None:
        check(latest)
        history = copy.deepcopy(latest.history)
    if newest := inside or latest:
        trainer.restore(newest)
    keeping = None
    if checkpoints:
        make = partial(kept_inside, trainer, history)
        keeping = Keeping(checkpoints, worker, make, minutes, notice)
    for index, metrics in enumerate(history):
        yield Epoch(index, metrics, best_epoch(history[: index + 1], attack))

    good = latest
    for index in range(len(history), phase.epochs):
        if over(phase, history, attack):
            return
        start = time.perf_counter() - trainer.seconds
        with memory.fitting(phase):
            metrics = trainer.epoch(index, progress, keeping)
        judge = partial(validation_accuracies, model, val, judged_by, training.seed, worker)
        if training.calibration:
            assert isinstance(model, Mixture)
            fitting = training.calibration, model, val, training.seed, worker
            judge = partial(calibration.judged, *fitting, judge)
        judged, deployed = choose(model, trainer.offers(), judge, attack)
        metrics |= judged
        metrics |= computed(Measured(metrics, trainer.images, model, val, worker))
        metrics["workers"] = float(worker.processes)
        if good and "val_fgsm" in judged_by and overfitted(history, metrics):
            trainer.restore(good)
            deployed = good.families.get(DEPLOYED)
            metrics = calibration.fitted_before(metrics, history[-1])
            metrics["overfitted"] = 1.0
        metrics["seconds"] = time.perf_counter() - start
        history.append(metrics)
        best = best_epoch(history, attack)
        good = trainer.checkpoint(index, history, deployed)
        if checkpoints and keeping:
            whole = exchange.of_all(good, model, worker)
            keeping.settle()
            if worker.first:
                checkpoints.save(whole, best)
            keeping.begin_anew()
        yield Epoch(index, metrics, best)


Newest = tuple[Checkpoint | None, Checkpoint | None]
"""The newest checkpoint after an epoch, and that inside of the one after it."""


def newest(checkpoints: Checkpoints) -> Newest:
    latest = checkpoints.latest()
    return latest, checkpoints.latest_inside(-1 if latest is None else latest.epoch)


def agreed(checkpoints: Checkpoints, worker: Worker) -> Newest:
    """As the first worker finds them: one of an earlier try that is dying may still be writing.

    Raises `UserError` on all where it finds others' checkpoints.
    """
    told = torch.zeros(3, device=worker.device)  # found, epochs that are done, steps
    if not worker.first:
        found, epochs_done, steps = (int(value) for value in worker.all.sum_(told).tolist())
        if not found:
            return newest(checkpoints)  # which raises here, too
        latest = checkpoints.load(epochs_done - 1) if epochs_done else None
        return latest, checkpoints.load_inside(epochs_done - 1, steps) if steps else None
    try:
        latest, inside = newest(checkpoints)
    except UserError:
        worker.all.sum_(told)
        raise
    told[0], told[1] = 1, 0 if latest is None else latest.epoch + 1
    told[2] = inside.begun.steps if inside and inside.begun else 0
    worker.all.sum_(told)
    return latest, inside


def kept_inside(
    trainer: Trainer, history: list[dict[str, float]], begun: Begun, sums: Tensor
) -> Checkpoint:
    """Of an epoch that has begun, after those of the history."""
    made = trainer.checkpoint(len(history) - 1, history, inside=(begun, sums))
    return exchange.of_all(made, trainer.model, trainer.worker)
