"""One Ray cluster and one trained run for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL

EPOCHS = 6
CHUNK = 64  # images of an evaluation that are judged at once
SHORT = [
    "data.val_images=900",
    "joint.validation.images=300",  # 96 choose an epoch by chance
    f"joint.epochs={EPOCHS}",
    "joint.batch_size=32",
    "experts.train.batch_size=32",
    f"evaluate.batch_size={CHUNK}",
]
TRAIN = [f"--set={override}" for override in [*SMALL, *SHORT]]


@pytest.fixture(scope="session", autouse=True)
def _stores_are_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow goes through 66 migrations for each new store: this process makes one, and where it
    would make another, a copy of that one as it was when it was new."""
    from fmoe.tracking import own

    new, usual = tmp_path_factory.mktemp("store") / own.DATABASE, own.opening

    @contextmanager
    def opening() -> Iterator[None]:
        with usual():
            file = own.folder() / own.DATABASE
            missing = not own.read_only() and not file.exists()
            if missing and new.exists():
                shutil.copy(new, file)
            yield
            if missing and file.exists() and not new.exists():
                shutil.copy(file, new)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(own, "opening", opening)
        yield


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Its processes write down what they import."""
    from fmoe.on_ray.session import session

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("PYTHONPROFILEIMPORTTIME", "1")
            stack.enter_context(session(2))
        yield


@dataclass(frozen=True)
class Trained:
    """What `fmoe train --json` printed, and the FMOE_HOME it ran under."""

    home: Path
    answer: dict[str, Any]


@pytest.fixture(scope="session")
def trained_once(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from fmoe.on_ray.workers import Workers
    from pipelines.training.run import Request, run

    home = tmp_path_factory.mktemp("trained")
    before = os.environ.get("FMOE_HOME")
    os.environ["FMOE_HOME"] = str(home)
    overrides = tuple(flag.removeprefix("--set=") for flag in TRAIN)
    request = Request("digits-whole", overrides=overrides, workers=Workers(2, 2), name="small")
    try:
        answer = run(request)
    finally:
        if before is None:
            del os.environ["FMOE_HOME"]
        else:
            os.environ["FMOE_HOME"] = before
    return Trained(home, answer)


@pytest.fixture
def trained(trained_once: Trained, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.setenv("FMOE_HOME", str(trained_once.home))
    return trained_once


JUDGED = 24  # test images


@pytest.fixture(scope="session")
def judged(trained_once: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answer of an evaluation in a process of its own, with a report."""
    folder = tmp_path_factory.mktemp("page")
    done = subprocess.run(
        [*evaluate_command(trained_once), "--report", str(folder)],
        capture_output=True,
        text=True,
        env=evaluate_environment(trained_once),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def evaluate_command(trained: Trained) -> list[str]:
    run = trained.answer["run_dir"]
    return [sys.executable, "-m", "pipelines.evaluate", run, "--limit", str(JUDGED), "--json"]


def evaluate_environment(trained: Trained) -> dict[str, str]:
    return {**os.environ, "FMOE_HOME": str(trained.home)}


@pytest.fixture
def model_copy(trained: Trained, tmp_path: Path) -> Path:
    """A model folder of the test's own, to be damaged."""
    return Path(shutil.copytree(Path(trained.answer["run_dir"]) / "model", tmp_path / "model"))


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        lines = self.out.splitlines()
        assert len(lines) == 1, f"more than one line on stdout: {lines}"
        value = json.loads(lines[0])
        assert isinstance(value, dict)
        return value


@pytest.fixture
def fmoe(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command line, in this process (so that it finds the Ray cluster running)."""
    from pipelines.cli import main

    def run(*arguments: str | Path) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        code = exit_info.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    return run
