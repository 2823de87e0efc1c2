"""`fmoe ui` and `fmoe studies dashboard`: real servers on loopback, ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from fmoe.paths import home
from fmoe.storage.folder import Folder
from fmoe.tracking import Tracker
from fmoe.tuning import search_space
from fmoe.tuning.trials import Ledger, Trial
from pipelines.cli import main
from pipelines.study.claim import claim, fingerprint

SPACE = """\
recipe: digits
budget: {trials: 3}
metrics: {val_robust: max}
scheduler: {kind: fifo}
searcher: {kind: random}
space:
  gate.temperature: {uniform: [0.5, 2]}
  gate.width: {choice: [4, 8]}
"""
START_SECONDS = 240.0


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@contextmanager
def served(*arguments: str, path: str) -> Iterator[Any]:
    """What the command serves there, as JSON or text; ends the command by SIGINT."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )
    try:
        yield answer(process, f"http://127.0.0.1:{port}{path}")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 130
        assert f"http://127.0.0.1:{port}" in out.splitlines()[0]
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)
    finally:
        process.kill()


def answer(process: subprocess.Popen[str], url: str) -> Any:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                text = page.read().decode()
                return json.loads(text) if text.startswith("{") else text
        except OSError:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.2)


@pytest.fixture
def study(tmp_path: Path) -> str:
    """Three trials: one finished, one pruned, one failed."""
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    space = search_space.load(str(file))
    folder = Folder.at(home()) / "studies" / "mine"
    claim(folder, space, fingerprint(space, 1), "mine", resume=False)
    ledger = Ledger(folder)
    values = [{"gate.temperature": 1.0 + i / 4, "gate.width": 4} for i in range(3)]
    history = [{"val_robust": 0.5, "at": 1.0}, {"val_robust": 0.75, "at": 2.0}]
    ledger.save(Trial(0, values[0], status="finished", history=history))
    ledger.save(Trial(1, values[1], status="pruned", history=history[:1]))
    ledger.save(Trial(2, values[2], status="failed", error="it diverged"))
    return "mine"


def test_mlflows_pages_are_those_of_the_store() -> None:
    Tracker.start("seen in the pages", {}, {}, None).finish("FINISHED")
    search = "/ajax-api/2.0/mlflow/experiments/get-by-name?experiment_name=fmoe"
    with served("ui", path=search) as told:
        assert told["experiment"]["name"] == "fmoe"


def test_optunas_dashboard_shows_the_study(study: str) -> None:
    with served("studies", "dashboard", study, path="/api/studies") as told:
        (summary,) = told["study_summaries"]
        assert (summary["study_name"], summary["directions"]) == ("mine", ["maximize"])


def test_optunas_own_tools_read_the_file(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.db"
    with pytest.raises(SystemExit) as ended:
        main(["studies", "dashboard", study, "--to", str(file)])
    assert not ended.value.code
    assert "3 trials" in capsys.readouterr().out
    loaded = optuna.load_study(study_name="mine", storage=f"sqlite:///{file}")
    assert [trial.state.name for trial in loaded.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert loaded.best_params == {"gate.temperature": 1.0, "gate.width": "4"}
    assert loaded.best_value == 0.75
    assert loaded.trials[1].intermediate_values == {0: 0.5}
    assert loaded.trials[2].user_attrs["error"] == "it diverged"
    with pytest.raises(SystemExit) as ended:
        main(["studies", "dashboard", study, "--to", str(file)])
    assert ended.value.code == 2
    assert "is there already; give another name" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["ui"], ["studies", "dashboard", "mine"]])
def test_a_port_that_is_taken_is_one_line(
    command: list[str], study: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--port", str(port)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"fmoe: --port {port}: Address already in use; give another"


def test_a_server_has_its_own_pages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example.org")
    with pytest.raises(SystemExit) as ended:
        main(["ui"])
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "served at https://" in out
    assert "mlflow.example.org" in out
    assert "secret" not in out
