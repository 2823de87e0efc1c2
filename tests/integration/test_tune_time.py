"""A study that ends by its clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmoe.storage import Folder
from fmoe.study import Ledger
from tests.integration.spaces import space


def test_every_trial_has_ended_with_the_studys_time(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those under way, and one that was about to start."""
    from pipelines.study_run import Request, run

    monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    file = space(
        tmp_path,
        {"gate.temperature": {"loguniform": [0.3, 3]}},
        baseline=False,
        scheduler={"kind": "fifo"},
    )
    budget = {"trials": 500, "minutes": 0.5}
    answer = run(
        Request(str(file), (), budget, None, None, 1, None, "timed", False, None, None, None, None)
    )
    trials = Ledger(Folder.at(tmp_path / "studies" / "timed")).trials()
    assert {trial.status for trial in trials} <= {"finished", "stopped"}
    assert all(trial.ended for trial in trials)
    assert 0 < answer["counts"]["finished"] < 500
    assert sum(answer["counts"].values()) == len(answer["trials"]) == len(trials)
