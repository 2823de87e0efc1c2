"""A trial whose process dies, as one does that the kernel ends for its memory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import tracking
from fmoe.storage.folder import Folder
from fmoe.tuning.trials import Ledger
from tests.integration.spaces import space, study

DIES = 1


def kill_every_process(ledger: Ledger, killed: list[int], over: threading.Event) -> None:
    """Of trial DIES, after its first report from there."""
    while not over.wait(0.02):
        for trial in ledger.trials():
            if trial.number != DIES or trial.status != "running" or not trial.process:
                continue
            pid = int(trial.process.rpartition(":")[2])
            if pid not in killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.append(pid)


def test_a_trial_that_is_killed_twice_fails_alone(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = space(
        tmp_path,
        {"gate.temperature": {"choice": [0.5, 1, 2]}},
        searcher={"kind": "grid"},
        scheduler={"kind": "fifo"},
        baseline=False,
        set={"joint.epochs": 6},
    )
    killed: list[int] = []
    over = threading.Event()
    ledger = Ledger(Folder.at(tmp_path / "studies" / "lost"))
    killer = threading.Thread(target=kill_every_process, args=(ledger, killed, over))
    killer.start()
    begin = time.monotonic()
    try:
        answer = study(tmp_path, file, "lost", monkeypatch)
    finally:
        over.set()
        killer.join()
    assert time.monotonic() - begin < 240
    assert len(killed) == 2, "tried again once"
    assert answer["counts"] == {"finished": 2, "pruned": 0, "stopped": 0, "failed": 1}
    dead = next(trial for trial in ledger.trials() if trial.number == DIES)
    assert dead.status == "failed"
    assert "memory" in (dead.error or "")
    assert answer["best"]["trial"] != DIES
    client = MlflowClient(tracking.store_uri())
    assert client.get_run(dead.run_id).info.status == "FAILED"
