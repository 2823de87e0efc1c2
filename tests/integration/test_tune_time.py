"""A study that ends by its clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmoe.storage.folder import Folder
from fmoe.tuning.trials import Ledger
from tests.integration.spaces import space, study


def test_every_trial_has_ended_with_the_studys_time(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those under way, and one that was about to start."""
    file = space(
        tmp_path,
        {"gate.temperature": {"loguniform": [0.3, 3]}},
        baseline=False,
        scheduler={"kind": "fifo"},
    )
    answer = study(tmp_path, file, "timed", monkeypatch, trials=500, minutes=0.5)
    trials = Ledger(Folder.at(tmp_path / "studies" / "timed")).trials()
    assert {trial.status for trial in trials} <= {"finished", "stopped"}
    assert all(trial.ended for trial in trials)
    assert 0 < answer["counts"]["finished"] < 500
    assert sum(answer["counts"].values()) == len(answer["trials"]) == len(trials)
