"""The driver killed or interrupted mid-run: the run says so, and the same command completes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import tracking
from tests.integration.conftest import TRAIN, Outcome, Trained

COMMAND = ["train", "digits", "--name=small", "--workers=2", "--json", *TRAIN]


def start(home: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *COMMAND],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FMOE_HOME": str(home)},
    )


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 150
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{file} did not come"
        time.sleep(0.05)


def test_killed_driver_and_the_same_command_again(
    trained_once: Trained,
    fmoe: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The final weights are those of the undisturbed run, bit for bit."""
    process = start(tmp_path)
    wait_for(tmp_path / "runs/small/joint/epoch-0000/manifest.json", process)
    process.kill()
    process.communicate()
    assert not (tmp_path / "runs/small/result.json").exists()
    monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    again = fmoe(*COMMAND)
    assert again.code == 0
    assert "0 trained, 3 from the store" in again.err
    assert again.json["digest"] == trained_once.answer["digest"]
    assert again.json["test"] == trained_once.answer["test"]
    client = MlflowClient(tracking.store_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fmoe").experiment_id])
    assert (run.info.run_id, run.info.status) == (again.json["run_id"], "FINISHED")
    history = client.get_metric_history(run.info.run_id, "val_robust")
    assert sorted(metric.step for metric in history) == [0, 1, 2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_ends_as_killed(
    number: signal.Signals, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start(tmp_path)
    wait_for(tmp_path / "experts", process)  # Ray is up and tasks run
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    client = MlflowClient(tracking.store_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fmoe").experiment_id])
    assert run.info.status == "KILLED"
