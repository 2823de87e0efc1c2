"""A study whose driver is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import tracking
from fmoe.storage.folder import Folder
from fmoe.tuning.trials import Ledger
from tests.integration.spaces import space


def start(home: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "tune", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FMOE_HOME": str(home)},
    )


def test_killed_driver_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = space(
        tmp_path,
        {"gate.temperature": {"loguniform": [0.3, 3]}},
        scheduler={"kind": "fifo"},
        set={"joint.epochs": 5},
    )
    command = (file, "--trials", "4", "--name", "killed")
    process = start(tmp_path, *command)
    ledger = Ledger(Folder.at(tmp_path / "studies" / "killed"))
    deadline = time.monotonic() + 120
    while True:
        trials = ledger.trials()
        ended = [trial for trial in trials if trial.status == "finished"]
        if ended and any(t.status == "running" and t.history for t in trials):
            break
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()
    kept = {trial.number: trial for trial in ledger.trials()}
    resumed = start(tmp_path, *command, "--resume")
    out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err
    answer = json.loads(out.splitlines()[-1])
    assert answer["counts"] == {"finished": 4, "pruned": 0, "stopped": 0, "failed": 0}
    for trial in ledger.trials():
        before = kept.get(trial.number)
        if before is None:
            continue
        assert trial.values == before.values
        if before.status == "finished":
            assert (trial.ended, trial.history) == (before.ended, before.history)
        else:
            assert trial.history[: len(before.history)] == before.history
    monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    client = MlflowClient(tracking.store_uri())
    runs = client.search_runs([client.get_experiment_by_name("fmoe").experiment_id])
    assert len(runs) == 5
    assert {run.info.status for run in runs} == {"FINISHED"}
