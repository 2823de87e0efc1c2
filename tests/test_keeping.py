"""Checkpoints inside of an epoch: what is gone on with is the step that was kept, the same bits."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fmoe import assembly, config, data, training
from fmoe.config import Config
from fmoe.models.mixture import Mixture
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import STATE, Begun, Checkpoint, Checkpoints, copy_state
from fmoe.storage.folder import Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Epoch, Progress
from fmoe.training.keeping import Keeping
from fmoe.training.metrics import TIMES
from tests.conftest import SMALL

EPOCHS, STEPS = 2, 5
TIMING = {"seconds", "train_seconds", "images_per_second", *TIMES}
EVERY_STEP = 1e-9  # minutes

Result = tuple[Tensors, list[dict[str, float]]]


class Stopped(Exception):
    pass


def settings(*overrides: str) -> Config:
    """All that remembers steps: momentum, an average, warm starts, a schedule, augmentation."""
    return config.load(
        "digits-whole",
        [
            *SMALL,
            "experts.roles.fgsm.count=0",
            f"joint.epochs={EPOCHS}",
            "joint.batch_size=16",
            "joint.ema=0.9",
            "joint.warm_start=true",
            "joint.attack={kind: mix, of: [{kind: clean}, {kind: pgd, eps: 0.1, steps: [1, 2]}]}",
            *overrides,
        ],
    )


def start(
    folder: Path | None,
    *overrides: str,
    progress: Progress | None = None,
    minutes: float | None = None,
    notice: Callable[[], bool] = lambda: False,
) -> tuple[Mixture, Iterator[Epoch]]:
    chosen, digits = settings(*overrides), data.load("digits")
    model, joint = assembly.seeded_mixture(chosen), chosen.joint
    images = digits.train[: STEPS * joint.batch_size], digits.val, chosen.data.augment
    epochs = training.epochs(
        model,
        training.Training(joint, joint.attack, *images),
        checkpoints=Checkpoints(Folder.at(folder), "key") if folder else None,
        progress=progress,
        minutes=minutes,
        notice=notice,
    )
    return model, epochs


def finish(folder: Path | None, *overrides: str) -> Result:
    model, epochs = start(folder, *overrides)
    kept = ({n: v for n, v in epoch.metrics.items() if n not in TIMING} for epoch in epochs)
    history = list(kept)
    return copy_state(model), history


def stop(folder: Path, at: tuple[int, int], *overrides: str, notice: bool) -> None:
    """Trains until the step `at` (epoch, steps of it) is made."""

    def progress(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == at:
            raise Stopped

    how = {"notice": lambda: True} if notice else {"minutes": EVERY_STEP}
    _, epochs = start(folder, *overrides, progress=progress, **how)
    with pytest.raises(Stopped):
        list(epochs)


def went_on(folder: Path, *overrides: str) -> tuple[Result, tuple[int, int]]:
    """The result, and the first step that was made."""
    steps: list[tuple[int, int]] = []
    model, epochs = start(
        folder, *overrides, progress=lambda epoch, step, _: steps.append((epoch, step))
    )
    history = [{n: v for n, v in e.metrics.items() if n not in TIMING} for e in epochs]
    return (copy_state(model), history), steps[0]


@pytest.fixture(scope="module")
def whole() -> Result:
    return finish(None)


def assert_same(run: Result, whole: Result) -> None:
    assert run[1] == whole[1]
    assert run[0].keys() == whole[0].keys()
    assert [name for name in run[0] if not torch.equal(run[0][name], whole[0][name])] == []


@pytest.mark.parametrize("at", [(0, 1), (0, 4), (1, 2)])
def test_on_notice_no_step_is_lost(at: tuple[int, int], whole: Result, tmp_path: Path) -> None:
    stop(tmp_path, at, notice=True)
    result, (epoch, step) = went_on(tmp_path)
    assert (epoch, step) == (at[0], at[1] + 1)
    assert_same(result, whole)


@pytest.mark.parametrize("muon", ["{kind: sgd}", "{kind: muon}"])
def test_every_so_many_minutes(muon: str, tmp_path: Path) -> None:
    """What is being written when the next is due is waited for by nobody, so some are left out."""
    optimizer = f"joint.optimizer={muon}"
    stop(tmp_path, (1, 4), optimizer, notice=False)
    result, (epoch, step) = went_on(tmp_path, optimizer)
    assert epoch == 1
    assert 1 < step <= 5
    assert_same(result, finish(None, optimizer))


def test_stopped_after_every_step(whole: Result, tmp_path: Path) -> None:
    for epoch in range(EPOCHS):
        for step in range(1, STEPS):
            stop(tmp_path, (epoch, step), notice=True)
    assert_same(finish(tmp_path), whole)


def test_of_a_finished_epoch_none_are_left(tmp_path: Path) -> None:
    _, epochs = start(tmp_path, notice=lambda: True)
    next(epochs)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0000"]


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    stop(tmp_path, (1, 4), notice=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-0000",
        "epoch-0001-step-000003",
        "epoch-0001-step-000004",
    ]


def test_a_truncated_one_costs_the_steps_since_the_one_before(
    whole: Result, tmp_path: Path
) -> None:
    stop(tmp_path, (1, 4), notice=True)
    file = tmp_path / "epoch-0001-step-000004" / STATE
    file.write_bytes(file.read_bytes()[:-40])
    result, first = went_on(tmp_path)
    assert first == (1, 4)
    assert_same(result, whole)


def test_without_the_epoch_before_it_counts_for_nothing(whole: Result, tmp_path: Path) -> None:
    """That one is what a training goes back to which overfits."""
    stop(tmp_path, (1, 2), notice=True)
    shutil.rmtree(tmp_path / "epoch-0000")
    result, first = went_on(tmp_path)
    assert first == (0, 1)
    assert_same(result, whole)


def test_a_manifest_that_says_nonsense_is_damaged(whole: Result, tmp_path: Path) -> None:
    stop(tmp_path, (0, 1), notice=True)
    manifest = tmp_path / "epoch-0000-step-000001" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"steps": 1', '"steps": "x"'))
    result, first = went_on(tmp_path)
    assert first == (0, 1)
    assert_same(result, whole)


def test_a_fault_of_the_disk_is_raised_where_training_is(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError("No space left on device")

    kept = Checkpoints(Folder.at(tmp_path), "key")
    object.__setattr__(kept, "inside_writer", lambda checkpoint: full)

    def made(*given: object) -> Checkpoint:
        return Checkpoint(-1, {}, [], begun=Begun(1, 0.0))

    keeping = Keeping(kept, Worker(), made, EVERY_STEP)
    keeping.keep(Begun(1, 0.0), torch.zeros(1))
    with pytest.raises(OSError, match="No space left"):
        keeping.settle()


MINUTES = 0.01


def trained_until_killed(folder: Path, log: Path) -> None:
    """A process of its own: writes down when each step was made."""
    torch.set_num_threads(1)

    def progress(epoch: int, step: int, steps: int) -> None:
        time.sleep(0.1)  # steps of some length
        with log.open("a") as file:
            file.write(f"{epoch} {step} {time.time()}\n")

    _, epochs = start(folder, "joint.epochs=4", progress=progress, minutes=MINUTES)
    list(epochs)


def test_a_death_costs_so_many_minutes_and_a_step(tmp_path: Path) -> None:
    """Killed at random moments until it is done: the steps made anew were made within that time."""
    log, moments = tmp_path / "log", random.Random(0)
    log.touch()
    deaths = 0
    while True:
        process = multiprocessing.get_context("spawn").Process(
            target=trained_until_killed, args=(tmp_path / "run", log)
        )
        process.start()
        seen = len(log.read_text().splitlines())
        until = moments.uniform(0.3, 1.5)
        while process.is_alive() and len(log.read_text().splitlines()) == seen:
            time.sleep(0.05)
        process.join(until)
        if process.exitcode == 0:
            break
        process.kill()
        process.join()
        deaths += 1
    assert deaths >= 2
    lines = [line.split() for line in log.read_text().splitlines()]
    steps = [((int(epoch), int(step)), float(at)) for epoch, step, at in lines]
    lost = [
        last - max(at for other, at in steps[: place + 1] if other == step and at <= last)
        for place, ((before, last), (step, _)) in enumerate(itertools.pairwise(steps))
        if step <= before
    ]
    assert max(lost, default=0) < 60 * MINUTES + 4 * 0.15, lost
    assert_same(finish(tmp_path / "run", "joint.epochs=4"), finish(None, "joint.epochs=4"))
