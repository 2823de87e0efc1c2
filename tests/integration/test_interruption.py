"""The driver interrupted mid-run: its MLflow run says so. tests/cluster kills it and resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import tracking
from tests.integration.conftest import TRAIN

COMMAND = ["train", "digits-whole", "--name=small", "--workers=2", "--json", *TRAIN]


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
