"""Promotion, the registry's commands and serving, on a real MLflow store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fmoe import model_folder, tracking
from fmoe.storage.folder import Folder
from fmoe.tracking.store import selected
from tests.integration.conftest import Outcome, Trained
from tests.integration.test_errors import refused

Fmoe = Callable[..., Outcome]
NAME = "fmoe-weak"


@pytest.fixture(scope="module")
def evaluated(trained_once: Trained) -> Trained:
    """The trained weights under a recipe whose eps leaves next to nothing, registered and under
    the full protocol: AutoAttack then takes seconds."""
    folder = Path(trained_once.answer["run_dir"]) / "model"
    model, recipe, card = model_folder.load_model(Folder.at(folder))
    wide = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"eps": 0.3})})
    home = trained_once.home
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FMOE_HOME", str(home))
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracker = tracking.Tracker.start("weak", {}, {}, None)
        digest = model_folder.save_model(
            Folder.at(home / "weak"),
            model.state_dict(),
            wide,
            data_digest=card["data"]["digest"],
            metrics={},
            extra={"run_id": tracker.run_id, "selected_on": "validation"},
        )
        tracker.register(model, home / "weak", NAME, (1, 8, 8), {"fmoe.sha256": digest})
        tracker.finish("FINISHED")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipelines.evaluate", f"models:/{NAME}@candidate"),
            *("--full", "--json", "--workers", "2"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "FMOE_HOME": str(home)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["recorded"] == f"models:/{NAME}/1"
    return trained_once


@pytest.fixture
def home(evaluated: Trained, trained: Trained) -> Trained:
    return trained


@pytest.fixture
def unflagged(home: Trained) -> Iterator[None]:
    """As if no flag had been raised, whatever so small a network raises."""
    client = MlflowClient(tracking.store_uri())
    run_id = client.get_model_version(NAME, "1").run_id
    folder = Path(client.download_artifacts(run_id, "evaluation/v1/evaluation.json"))
    report = json.loads(folder.read_text())
    client.log_dict(run_id, {**report, "flags": []}, "evaluation/v1/evaluation.json")
    yield
    client.log_dict(run_id, report, "evaluation/v1/evaluation.json")


def test_evaluation_is_kept_with_the_version(home: Trained, fmoe: Fmoe) -> None:
    client = MlflowClient(tracking.store_uri())
    version = client.get_model_version(NAME, "1")
    assert version.tags["fmoe.eval.full"] == "true"
    assert version.tags["fmoe.eval.images"] == "360"
    files = {item.path for item in client.list_artifacts(version.run_id, "evaluation/v1")}
    assert {f"evaluation/v1/{name}" for name in ("index.html", "verdicts.parquet")} <= files
    assert "full" in fmoe("models", "show", NAME).out
    # a partial one does not take its place
    partial = fmoe("evaluate", f"models:/{NAME}/1", "--attacks", "fgsm", "--limit", "9", "--json")
    assert "recorded" not in partial.json
    assert client.get_model_version(NAME, "1").tags["fmoe.eval.images"] == "360"


def test_a_flag_stops_promotion(home: Trained, fmoe: Fmoe) -> None:
    client = MlflowClient(tracking.store_uri())
    run_id = client.get_model_version(NAME, "1").run_id
    report = json.loads(
        Path(client.download_artifacts(run_id, "evaluation/v1/evaluation.json")).read_text()
    )
    raised = {**report, "flags": ["random: two forward passes differ on 3 of 360 images"]}
    client.log_dict(run_id, raised, "evaluation/v1/evaluation.json")
    try:
        answer = fmoe("promote", NAME, "--json").json
    finally:
        client.log_dict(run_id, report, "evaluation/v1/evaluation.json")
    assert (answer["promoted"], answer["version"]) == (False, 1)
    assert "flag random" in answer["reason"]
    assert tracking.registry.aliased(NAME, "champion") is None


def test_two_promotions_at_once(home: Trained, unflagged: None, fmoe: Fmoe) -> None:
    """One champion, and one clear refusal."""
    command = [sys.executable, "-m", "pipelines.promote", NAME, "--json"]
    environment = {**os.environ, "FMOE_HOME": str(home.home)}
    racers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    answers = [json.loads(racer.communicate()[0].splitlines()[-1]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(answer["promoted"] for answer in answers) == [False, True]
    (loser,) = [answer for answer in answers if not answer["promoted"]]
    assert any(part in loser["reason"] for part in ("another promotion", "is champion already"))
    assert tracking.registry.aliased(NAME, "champion") == 1
    (row,) = fmoe("models", "history", NAME, "--json").json["history"]
    assert (row["version"], row["before"]) == (1, "none")
    assert "first" in row["reason"]
    listed = fmoe("models", "list", "--json").json["models"]
    assert [row["name"] for row in listed] == ["fmoe-digits", NAME]
    assert listed[1] == {"name": NAME, "versions": 1, "aliases": {"candidate": 1, "champion": 1}}


def test_a_candidate_without_evaluation_is_not_promoted(home: Trained, fmoe: Fmoe) -> None:
    client = MlflowClient(tracking.store_uri())
    first = client.get_model_version(NAME, "1")
    with selected():  # MLflow looks the source up in its own choice of a store
        second = client.create_model_version(
            NAME, first.source, first.run_id, tags={"fmoe.sha256": first.tags["fmoe.sha256"]}
        )
    client.set_registered_model_alias(NAME, "candidate", second.version)
    try:
        answer = fmoe("promote", NAME, "--json").json
        assert not answer["promoted"]
        assert "--full" in answer["reason"]
        forced = fmoe("promote", NAME, "--to", "staging", "--force", "to look at it", "--json").json
        assert (forced["promoted"], forced["reason"]) == (True, "forced: to look at it")
        tags = client.get_model_version(NAME, second.version).tags
        assert "not evaluated" in tags["fmoe.staging.despite"]
    finally:
        client.set_registered_model_alias(NAME, "candidate", "1")
        client.delete_model_version(NAME, second.version)
    refused(fmoe("promote", "nonesuch"), "nonesuch: no such model")
    refused(fmoe("promote", NAME, "--to", "candidate"), "--to candidate")
    refused(fmoe("promote", NAME, "--force", " "), "give the reason")
