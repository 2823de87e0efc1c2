"""Child runs of a study in a real MLflow store, after the driver was killed and started again."""

from __future__ import annotations

import sys

import pytest
from mlflow.tracking import MlflowClient
from torch import nn

from fmoe import tracking
from fmoe.data import Data
from fmoe.evaluation import evaluate
from fmoe.tracking import Tracker
from fmoe.tuning.trials import Trial
from pipelines.study.log import StudyLog


@pytest.fixture
def parent() -> Tracker:
    return Tracker.start("study", {}, {}, None)


def status(trial: Trial) -> str:
    assert trial.run_id is not None
    return str(tracking.client().get_run(trial.run_id).info.status)


def ended(number: int) -> Trial:
    return Trial(number, {"a": 1}, status="finished", history=[{"val_robust": 0.5}], ended=1.0)


def test_a_run_that_the_killed_driver_had_no_time_to_end(parent: Tracker) -> None:
    trial = Trial(0, {"a": 1}, history=[{"val_robust": 0.5}])
    killed = StudyLog("study", parent)
    killed.begun(trial)
    trial.status = "finished"  # in its file, and not yet in MLflow
    assert status(trial) == "RUNNING"
    StudyLog("study", parent).resume([trial])
    assert status(trial) == "FINISHED"


def test_a_run_that_was_just_made_when_the_driver_was_killed(
    parent: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(0, {"a": 1})
    with monkeypatch.context() as patched:
        for call in ("log_batch", "set_terminated"):  # nothing reaches the store any more
            patched.setattr(MlflowClient, call, lambda *_, **__: sys.exit(1))
        with pytest.raises(SystemExit):
            StudyLog("study", parent).tracker(trial)
    assert trial.run_id is None
    StudyLog("study", parent).begun(trial)
    experiment = tracking.client().get_run(parent.run_id).info.experiment_id
    made = tracking.client().search_runs([experiment], "attributes.run_name = 'study-0000'")
    assert [run.info.run_id for run in made] == [trial.run_id]
    assert made[0].data.params == {"a": "1"}


def test_finals_leave_no_run_of_an_earlier_try_running(parent: Tracker, digits: Data) -> None:
    trial = ended(0)
    StudyLog("study", parent).ended(trial)
    again = StudyLog("study", parent)
    again.resume([trial])
    assert again.trackers == {}  # nothing to mend
    some = digits.val[:8]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    found = evaluate(model, some.images, some.labels, attacks=["fgsm"], eps=0.1)
    again.evaluated(trial, "final_val", found)
    assert status(trial) == "FINISHED"
    told = tracking.client().get_run(trial.run_id).data.tags["mlflow.note.content"]
    assert told.startswith("On validation images: **")
    assert "Trial 0 of study `study`: `a = 1`." in told
