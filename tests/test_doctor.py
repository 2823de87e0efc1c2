"""`fmoe doctor`: what is wrong with a machine is a line with its remedy, and nothing is left."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from fmoe.paths import home
from pipelines import health
from pipelines.cli import main
from pipelines.health import Finding, State


def doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the last finding of each name."""
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--quick", "--json"])
    answer = json.loads(capsys.readouterr().out)
    faults = sum(each["state"] == "fault" for each in answer["findings"])
    assert answer["faults"] == faults
    return int(ended.value.code or 0), {each["name"]: each for each in answer["findings"]}


def test_a_machine_that_can_train(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys)
    assert code == 0
    assert {"fmoe", "python", "packages", "cpus", "memory", "gpus", "home", "data", "mlflow"} <= (
        found.keys()
    )
    assert found["packages"]["state"] == "ok", found["packages"]
    assert "is made by the first run" in found["mlflow"]["text"]
    assert "digits" in found["data"]["text"]
    assert list(home().iterdir()) == []
    with pytest.raises(SystemExit):
        main(["doctor", "--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "this machine is ready"
    assert max(map(len, lines)) < 160


@pytest.mark.parametrize(
    ("variable", "value", "name", "said"),
    [
        ("FMOE_STORAGE", "FILE/runs", "storage", "cannot be written"),
        ("FMOE_DATA_DIR", "/nonesuch", "data", "FMOE_DATA_DIR /nonesuch: no such folder"),
        ("FMOE_HOME", "FILE", "home", "is a file; set it to a folder"),
        ("MLFLOW_TRACKING_URI", "http://127.0.0.1:9", "mlflow", "127.0.0.1:9"),
    ],
)
def test_what_would_end_a_run_is_a_fault(
    variable: str,
    value: str,
    name: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv(variable, value.replace("FILE", str(file)))
    code, found = doctor(capsys)
    assert code == 1
    assert found[name]["state"] == "fault"
    assert said in found[name]["text"]


def test_storage_is_written_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMOE_STORAGE", str(tmp_path / "runs"))
    code, found = doctor(capsys)
    assert (code, found["storage"]["state"]) == (0, "ok")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_small_shared_memory_and_few_files_have_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(64 * 2**20, 0, 64 * 2**20))
    monkeypatch.setattr(health.resource, "getrlimit", lambda _: (1024, 1024))  # type: ignore[attr-defined]
    files, shared = health.limits()
    assert files == Finding("open files", State.NOTE, "at most 1024", "ulimit -n 4096")
    assert (shared.state, shared.text) == (State.NOTE, "0.1 GiB at /dev/shm")
    assert "--shm-size" in shared.remedy


def test_a_package_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    other = {"numpy": "1.26.4"}
    monkeypatch.setattr(health, "version", lambda name: other.get(name) or version(name))
    (finding,) = health.packages()
    assert finding.state is State.FAULT
    assert "numpy 1.26.4 (needs >=2)" in finding.text
