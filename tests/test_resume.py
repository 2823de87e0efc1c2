"""A resumed run equals an uninterrupted one: the same bits, the same history."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fmoe import assembly, config, data, training
from fmoe.config import Config
from fmoe.errors import UserError
from fmoe.models.mixture import Mixture
from fmoe.storage.checkpoint import STATE, Checkpoints, copy_state
from fmoe.storage.folder import MANIFEST, Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Epoch, Progress
from fmoe.training.metrics import TIMES
from tests.conftest import SMALL

EPOCHS = 4
TIMING = {"seconds", "train_seconds", "images_per_second", *TIMES}

History = list[dict[str, float]]


def settings(*overrides: str) -> Config:
    """Momentum, a schedule, augmentation and a random attack: all that a resume must keep."""
    return config.load(
        "digits-whole",
        [
            *SMALL,
            "experts.roles.fgsm.count=0",
            f"joint.epochs={EPOCHS}",
            "joint.batch_size=32",
            "joint.attack={kind: mix, of: [{kind: clean}, {kind: pgd, eps: 0.1, steps: [1, 2]}]}",
            "joint.validation.attack={kind: fgsm, eps: 0.1, random_start: true}",
            *overrides,
        ],
    )


def start(
    folder: Path | None, *overrides: str, key: str = "key", progress: Progress | None = None
) -> tuple[Mixture, Iterator[Epoch]]:
    chosen, digits = settings(*overrides), data.load("digits")
    model = assembly.seeded_mixture(chosen)
    epochs = training.epochs(
        model,
        training.Training(
            chosen.joint,
            chosen.joint.attack,
            digits.train[:64],
            digits.val,
            chosen.data.augment,
            chosen.seed,
        ),
        checkpoints=Checkpoints(Folder.at(folder), key) if folder else None,
        progress=progress,
    )
    return model, epochs


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMING}


def finish(folder: Path | None, *overrides: str) -> tuple[Tensors, History]:
    model, epochs = start(folder, *overrides)
    history = [lasting(epoch.metrics) for epoch in epochs]
    return copy_state(model), history


@pytest.fixture(scope="module")
def whole() -> tuple[Tensors, History]:
    """The run that nothing interrupted (and that wrote no checkpoint)."""
    return finish(None)


def assert_same(run: tuple[Tensors, History], whole: tuple[Tensors, History]) -> None:
    assert run[1] == whole[1]
    assert run[0].keys() == whole[0].keys()
    assert [name for name in run[0] if not torch.equal(run[0][name], whole[0][name])] == []


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of a run that was abandoned after 1, 2, 3 epochs."""
    folders = {}
    running = tmp_path_factory.mktemp("run")
    _, epochs = start(running)
    for count in range(1, EPOCHS):
        next(epochs)
        folders[count] = tmp_path_factory.mktemp("stopped") / "run"
        shutil.copytree(running, folders[count])
    return folders


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def copied(stopped: dict[int, Path], count: int, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped[count], tmp_path / "run"))


@pytest.mark.parametrize("count", range(1, EPOCHS))
def test_stopped_after_an_epoch(
    count: int, stopped: dict[int, Path], whole: tuple[Tensors, History], tmp_path: Path
) -> None:
    assert_same(finish(copied(stopped, count, tmp_path)), whole)


def test_stopped_after_every_epoch(whole: tuple[Tensors, History], tmp_path: Path) -> None:
    for count in range(1, EPOCHS):
        _, epochs = start(tmp_path)
        assert len(list(itertools.islice(epochs, count))) == count
    assert_same(finish(tmp_path), whole)


def test_momentum_as_matrices_is_kept(tmp_path: Path) -> None:
    muon = "joint.optimizer={kind: muon}"
    _, epochs = start(tmp_path, muon)
    next(epochs)
    assert_same(finish(tmp_path, muon), finish(None, muon))


def test_a_finished_run_trains_nothing_more(tmp_path: Path) -> None:
    first = finish(tmp_path)
    steps: list[int] = []
    model, epochs = start(tmp_path, progress=lambda epoch, step, count: steps.append(step))
    history = [lasting(epoch.metrics) for epoch in epochs]
    assert_same((copy_state(model), history), first)
    assert steps == []


def test_a_run_that_stopped_early_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = {"val_clean": 0.5, "val_robust": 0.5, "val_fgsm": 0.5}
    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", lambda *given: dict(same))
    _, epochs = start(tmp_path, "joint.patience=1")
    first = list(epochs)
    assert [epoch.index for epoch in first] == [0, 1]
    _, epochs = start(tmp_path, "joint.patience=1")
    assert list(epochs) == first


def test_epochs_held_by_a_checkpoint_are_yielded_again(tmp_path: Path) -> None:
    _, epochs = start(tmp_path)
    first = list(itertools.islice(epochs, 3))
    steps: list[tuple[int, int, int]] = []
    _, epochs = start(tmp_path, progress=lambda *given: steps.append(given))
    again = list(itertools.islice(epochs, 3))
    assert again == first  # with their timings: read, not measured again
    assert steps == []
    assert next(epochs).index == 3
    assert steps == [(3, 1, 2), (3, 2, 2)]


def test_a_checkpoint_is_there_before_its_epoch_is_yielded(tmp_path: Path) -> None:
    _, epochs = start(tmp_path)
    checkpoints = Checkpoints(Folder.at(tmp_path), "key")
    for epoch in epochs:
        latest = checkpoints.latest()
        assert latest is not None
        assert latest.epoch == epoch.index
        assert latest.history[-1] == epoch.metrics


def test_kept_are_the_last_two_and_the_best(tmp_path: Path) -> None:
    _, epochs = start(tmp_path)
    for epoch in epochs:
        keep = {epoch.index, max(epoch.index - 1, 0), epoch.best}
        assert names(tmp_path) == [f"epoch-{index:04d}" for index in sorted(keep)]


@pytest.mark.parametrize("file", [STATE, MANIFEST])
@pytest.mark.parametrize("count", [1, 3])
def test_a_truncated_newest_checkpoint_costs_its_epoch(
    file: str,
    count: int,
    stopped: dict[int, Path],
    whole: tuple[Tensors, History],
    tmp_path: Path,
) -> None:
    folder = copied(stopped, count, tmp_path)
    path = folder / f"epoch-{count - 1:04d}" / file
    path.write_bytes(path.read_bytes()[:-40])
    steps: list[tuple[int, int, int]] = []
    model, epochs = start(folder, progress=lambda *given: steps.append(given))
    history = [lasting(epoch.metrics) for epoch in epochs]
    assert steps[0] == (count - 1, 1, 2)
    assert_same((copy_state(model), history), whole)


@pytest.mark.parametrize("missing", [STATE, MANIFEST])
def test_a_half_written_checkpoint_is_not_read(
    missing: str, stopped: dict[int, Path], whole: tuple[Tensors, History], tmp_path: Path
) -> None:
    folder = copied(stopped, 2, tmp_path)
    (folder / "epoch-0001" / missing).unlink()
    latest = Checkpoints(Folder.at(folder), "key").latest()
    assert latest is not None
    assert latest.epoch == 0
    assert_same(finish(folder), whole)


def test_checkpoints_of_other_settings_are_refused(
    stopped: dict[int, Path], tmp_path: Path
) -> None:
    folder = copied(stopped, 2, tmp_path)
    _, epochs = start(folder, key="another")
    with pytest.raises(UserError, match="belongs to other settings"):
        next(epochs)
    assert names(folder) == names(stopped[2])


def killed_in_mid_epoch(folder: Path) -> None:
    """A process of its own: SIGKILLs itself after the first step of the second epoch."""
    torch.set_num_threads(1)

    def progress(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (1, 1):
            os.kill(os.getpid(), signal.SIGKILL)

    _, epochs = start(folder, progress=progress)
    list(epochs)


def test_killed_in_mid_epoch(whole: tuple[Tensors, History], tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=killed_in_mid_epoch, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == ["epoch-0000"]
    assert_same(finish(tmp_path), whole)
