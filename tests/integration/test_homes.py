"""Commands × states of the home: moved, copied, linked, read-only, or with MLflow's part gone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from fmoe import tracking
from tests.integration.conftest import TRAIN, Outcome, Trained
from tests.integration.spaces import space, study
from tests.integration.test_errors import refused

Fmoe = Callable[..., Outcome]
MODEL = "models:/fmoe-digits@candidate"


@dataclass(frozen=True)
class Furnished:
    """A home with a finished run and a finished study of one trial."""

    home: Path
    run: dict[str, Any]
    study: dict[str, Any]
    space: Path


@pytest.fixture(scope="module")
def furnished(trained_once: Trained, tmp_path_factory: pytest.TempPathFactory) -> Furnished:
    folder = tmp_path_factory.mktemp("furnished")
    home = Path(shutil.copytree(trained_once.home, folder / "home"))
    file = space(folder, {"gate.temperature": {"choice": [1, 2]}}, scheduler={"kind": "fifo"})
    with pytest.MonkeyPatch.context() as patched:
        found = study(home, file, "st", patched, trials=1)
    return Furnished(home, trained_once.answer, found, file)


@dataclass
class State:
    """A home as a command finds it. around: the folder in which everything stands; others: paths
    beside the home that must stay as they are."""

    name: str
    home: Path
    around: Path
    furnished: Furnished
    variables: dict[str, str] = field(default_factory=dict)
    before: dict[str, str] = field(default_factory=dict)

    def outside(self) -> dict[str, str]:
        """Digests of all files around that are not the home's (as seen through no link), and of the
        home that it was copied from."""
        real, out = self.home.resolve(), {}
        for top, folders, files in chain(os.walk(self.around), os.walk(self.furnished.home)):
            folders[:] = [f for f in folders if (Path(top) / f).resolve() != real]
            for file in files:
                path = Path(top) / file
                out[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            out |= {f"{Path(top) / f}/": "" for f in folders}
        return out


def settled(furnished: Furnished, home: Path) -> Path:
    """A home that believes to have stood there ever since."""
    shutil.copytree(furnished.home, home)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FMOE_HOME", str(home))
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.client()
    return home


@contextlib.contextmanager
def state(name: str, furnished: Furnished, around: Path) -> Iterator[State]:
    home = settled(furnished, around / "home")
    store = MlflowClient(f"sqlite:///{home}/mlflow/mlflow.db")
    here = State(name, home, around, furnished)
    if name == "renamed":
        here.home = home.rename(around / "an other %20 näme?")
    elif name == "copied":
        here.home = Path(shutil.copytree(home, around / "copy"))
    elif name == "linked":
        here.home = around / "link"
        here.home.symlink_to(home)
    elif name == "run deleted":
        store.delete_run(furnished.run["run_id"])
        store.delete_run(furnished.study["best"]["run_id"])
    elif name == "experiment deleted":
        experiment = store.get_experiment_by_name("fmoe")
        assert experiment is not None
        store.delete_experiment(experiment.experiment_id)
    elif name == "store switched":
        (around / "other").mkdir()
        here.variables["MLFLOW_TRACKING_URI"] = f"sqlite:///{home}/other.db"
    elif name == "read-only":
        here.home = around / "mounted"
        here.home.mkdir()
        for command in (["--bind", str(home), str(here.home)],
                        ["-o", "remount,ro,bind", str(here.home)]):  # fmt: skip
            done = subprocess.run(["mount", *command], capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no bind mount here: {done.stderr}")
    try:
        here.before = here.outside()
        yield here
    finally:
        if name == "read-only":
            subprocess.run(["umount", str(here.home)], check=True)


STATES = ("as it was", "renamed", "copied", "linked", "read-only", "run deleted",
          "experiment deleted", "store switched")  # fmt: skip


@pytest.fixture(scope="module", params=STATES)
def built(
    request: pytest.FixtureRequest, furnished: Furnished, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[State]:
    with state(request.param, furnished, tmp_path_factory.mktemp("around")) as here:
        yield here


@pytest.fixture
def at(built: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[State]:
    """The state, entered; whatever the command did, nothing outside of the home has changed."""
    monkeypatch.setenv("FMOE_HOME", str(built.home))
    monkeypatch.chdir(tmp_path)
    for name, value in built.variables.items():
        monkeypatch.setenv(name, value)
    yield built
    assert built.outside() == built.before


def image(folder: Path) -> Path:
    path = folder / "x.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return path


def test_pull(at: State, fmoe: Fmoe, tmp_path: Path) -> None:
    outcome = fmoe("pull", MODEL, "--to", tmp_path / "out", "--json")
    if at.name == "store switched":
        refused(outcome, MODEL, "not in the registry")
        return
    assert outcome.json["digest"] == at.furnished.study["best"]["digest"]


def test_predict(at: State, fmoe: Fmoe, tmp_path: Path) -> None:
    outcome = fmoe("predict", MODEL, image(tmp_path), "--json")
    if at.name == "store switched":
        refused(outcome, MODEL, "not in the registry")
    else:
        assert len(outcome.json["predictions"]) == 1
    folder = fmoe("predict", at.home / "runs" / "small", image(tmp_path), "--json")
    assert len(folder.json["predictions"]) == 1


def test_evaluate(at: State, fmoe: Fmoe) -> None:
    judged = ("--limit", "9", "--attacks", "fgsm", "--json")
    folder = fmoe("evaluate", at.home / "runs" / "small", *judged)
    assert folder.json["images"] == 9
    outcome = fmoe("evaluate", MODEL, *judged)
    if at.name == "store switched":
        refused(outcome, MODEL, "not in the registry")
    elif at.name == "read-only":
        assert "recorded" not in outcome.json
        assert "is not recorded" in outcome.err
    else:
        assert outcome.json["recorded"].startswith("models:/fmoe-digits/")


@pytest.mark.parametrize(
    "command", [["list"], ["show", "fmoe-digits"], ["history", "fmoe-digits"]], ids=lambda c: c[0]
)
def test_models(at: State, fmoe: Fmoe, command: list[str]) -> None:
    outcome = fmoe("models", *command, "--json")
    if at.name != "store switched":
        key = {"list": "models", "show": "versions", "history": "history"}[command[0]]
        assert len(outcome.json[key]) == {"list": 1, "show": 2, "history": 0}[command[0]]
    elif command == ["list"]:
        assert outcome.json["models"] == []
    else:
        refused(outcome, "fmoe-digits: no such model")


@pytest.mark.parametrize("command", [["list"], ["show", "st"], ["best", "st"]], ids=lambda c: c[0])
def test_studies(at: State, fmoe: Fmoe, command: list[str]) -> None:
    answer = fmoe("studies", *command, "--json").json
    told = answer["studies"][0] if command == ["list"] else answer
    assert told["study"] == "st"
    if command != ["best", "st"]:
        assert told["study_dir"] == str(at.home.resolve() / "studies" / "st")


def test_reap(at: State, fmoe: Fmoe) -> None:
    outcome = fmoe("runs", "reap", "--json")
    if at.name == "read-only":
        refused(outcome, str(at.home / "mlflow"), "cannot be written")
    else:
        assert outcome.json["reaped"] == []


def test_promote(at: State, fmoe: Fmoe) -> None:
    outcome = fmoe("promote", "fmoe-digits", "--force", "a test", "--to", "staging", "--json")
    if at.name == "read-only":
        refused(outcome, str(at.home / "mlflow"), "cannot be written")
    elif at.name == "store switched":
        refused(outcome, "fmoe-digits: no such model")
    else:
        assert outcome.json["promoted"]


def train(fmoe: Fmoe) -> Outcome:
    return fmoe("train", "digits-whole", *TRAIN, "--name", "small", "--workers", "1", "--json")


def there(answer: dict[str, Any], home: Path) -> None:
    """What a result names is where it says."""
    assert answer["run_dir"] == str(home.resolve() / "runs" / "small")
    assert tracking.registry.holds(answer["model_uri"], answer["digest"])
    assert (
        json.loads((home / "runs" / "small" / "result.json").read_text())["model_uri"]
        == (answer["model_uri"])
    )


def test_train_again(at: State, fmoe: Fmoe) -> None:
    outcome = train(fmoe)
    if at.name == "read-only":
        refused(outcome, str(at.home / "runs" / "small"), "cannot be written")
        return
    there(outcome.json, at.home)
    same = outcome.json["run_id"] == at.furnished.run["run_id"]
    assert same == (at.name != "store switched")
    said = {
        "run deleted": "mlflow runs restore",
        "experiment deleted": "mlflow runs restore",
        "store switched": "registering the model again",
    }
    assert said.get(at.name, "is finished") in outcome.err
    if at.name == "store switched":
        run = tracking.client().get_run(outcome.json["run_id"])
        assert (run.info.status, run.data.metrics["val_clean"] > 0) == ("FINISHED", True)


def test_tune_again(at: State, fmoe: Fmoe) -> None:
    outcome = fmoe(
        "tune", at.furnished.space, "--trials", "1", "--name", "st", "--resume", "--json"
    )
    if at.name == "read-only":
        refused(outcome, str(at.home / "studies" / "st"), "cannot be written")
        return
    answer = outcome.json
    assert answer["study_dir"] == str(at.home.resolve() / "studies" / "st")
    assert tracking.registry.holds(answer["best"]["model_uri"], answer["best"]["digest"])


def test_train_resumed(at: State, fmoe: Fmoe) -> None:
    """A run that was killed before it could register its model."""
    if at.name == "read-only":
        pytest.skip("the run cannot be made unfinished; a finished one is refused above")
    (at.home / "runs" / "small" / "result.json").unlink(missing_ok=True)
    if at.name == "store switched":  # as it was before
        record = at.home / "runs" / "small" / "run.json"
        record.write_text(record.read_text().replace(run_id(at), at.furnished.run["run_id"]))
    outcome = train(fmoe)
    if at.name == "experiment deleted":
        refused(outcome, "experiment fmoe is deleted", "mlflow experiments restore")
        return
    there(outcome.json, at.home)
    assert "joint  epoch" not in outcome.err, "no worker is started: nothing is left to train"
    run = tracking.client().get_run(outcome.json["run_id"])
    assert (run.info.status, run.info.lifecycle_stage) == ("FINISHED", "active")
    assert run_id(at) == run.info.run_id
    history = tracking.client().get_metric_history(run.info.run_id, "val_robust")
    assert [metric.step for metric in history] == list(range(outcome.json["epochs"]))
    new = run.info.run_id != at.furnished.run["run_id"]
    assert new == (at.name in ("run deleted", "store switched"))
    assert ("this is a new one" in outcome.err) == new


def run_id(at: State) -> str:
    found: str = json.loads((at.home / "runs" / "small" / "run.json").read_text())["run_id"]
    return found
