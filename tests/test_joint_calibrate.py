"""`joint.calibrate`: every epoch is judged and deployed with the `confidence` fitted to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmoe import config
from fmoe.config import Config
from fmoe.data import Data
from fmoe.numerics.worker import Worker
from fmoe.storage.folder import Folder
from fmoe.training import calibration, joint
from fmoe.training.calibration import Fitting
from fmoe.training.expert_store import ExpertStore
from fmoe.training.loop import Epoch
from fmoe.training.validation import validation_accuracies, validation_attacks
from tests.conftest import SMALL
from tests.test_confidence import BRANCHED, mixture

CALIBRATED = ("joint.calibrate={keep: 0.7, steps: 2}", "joint.epochs=2", "evaluate.eps=0.01")


def chosen(*more: str) -> Config:
    return config.load("digits-whole", [*SMALL, *BRANCHED, *CALIBRATED, *more])


def trained(settings: Config, few: Data, folder: Path) -> list[Epoch]:
    run = Folder.at(folder / "run")
    return list(joint.joint_epochs(settings, few, ExpertStore(Folder.at(folder / "store")), run))


@pytest.fixture(scope="module")
def epochs(few: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Epoch], Path]:
    folder = tmp_path_factory.mktemp("calibrated")
    return trained(chosen(), few, folder), folder


def test_an_epoch_deploys_what_it_was_judged_with(
    epochs: tuple[list[Epoch], Path], few: Data
) -> None:
    settings, (came, folder) = chosen(), epochs
    for epoch in came:
        made = calibration.deployed(settings, epoch.metrics)
        assert made.confidence is not None
        assert made.confidence.weight == epoch.metrics["confidence_weight"]
        model = joint.trained(settings, Folder.at(folder / "run"), few.identity, epoch.index)
        assert model.confidence is not None
        assert model.confidence.confidence == made.confidence
        phase, val = settings.joint, few.val[: settings.joint.validation.images]
        attacks = validation_attacks(phase, phase.attack)
        again = validation_accuracies(model, val, attacks, settings.seed, Worker())
        assert again == {name: epoch.metrics[name] for name in again}


def test_training_itself_is_as_without(
    epochs: tuple[list[Epoch], Path], few: Data, tmp_path: Path
) -> None:
    without = trained(chosen("joint.calibrate=null"), few, tmp_path)
    for with_map, plain in zip(epochs[0], without, strict=True):
        assert with_map.metrics["train_loss"] == plain.metrics["train_loss"]
        assert "confidence_weight" not in plain.metrics
    assert (
        calibration.deployed(chosen("joint.calibrate=null"), without[0].metrics).confidence is None
    )


def test_workers_share_the_images(few: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = mixture(*BRANCHED, *CALIBRATED)
    assert settings.joint.calibrate is not None
    by, val = Fitting.of(settings, settings.joint.calibrate), few.val[:21]
    whole = calibration.answers(model, by, val, 0, Worker())
    monkeypatch.setattr(calibration, "reduce_sum", lambda tensor, worker: tensor)
    parts = [calibration.answers(model, by, val, 0, Worker(rank, 2)) for rank in range(2)]
    for name in ("plain", "accurate", "robust", "attacked"):
        both = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(both, getattr(whole, name), rtol=1e-4, atol=1e-5)


def test_where_nothing_withstands_an_epoch_is_judged_as_it_is(few: Data) -> None:
    model, settings = mixture(*BRANCHED, "joint.calibrate={steps: 3}", "evaluate.eps=0.9")
    before = model.confidence
    assert settings.joint.calibrate is not None
    by = Fitting.of(settings, settings.joint.calibrate)
    found = calibration.judged(by, model, few.val[:12], 0, Worker(), lambda: {"val_clean": 0.25})
    assert found == {"val_clean": 0.25}
    assert model.confidence is before


def test_after_an_epoch_that_is_undone_the_good_ones_map_counts() -> None:
    good = {"val_clean": 0.5, "confidence_weight": 0.9, "confidence_scale": 2.0}
    undone = {"val_clean": 0.1, "confidence_weight": 0.6, "confidence_shift": 1.0}
    kept = {"val_clean": 0.1, "confidence_weight": 0.9, "confidence_scale": 2.0}
    assert calibration.fitted_before(undone, good) == kept
    assert calibration.fitted_before(undone, {"val_clean": 0.5}) == {"val_clean": 0.1}


def test_roles_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"joint\.calibrate\.accurate: no experts of role clean"):
        chosen("joint.calibrate.accurate=[clean]")
