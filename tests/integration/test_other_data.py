"""Evaluations on data in every state: what is judged, what is said of it, what is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from fmoe import assembly, config, data, model_folder, tracking
from fmoe.evaluation.promotion import lacks
from fmoe.storage.folder import Folder
from tests.data_states import STATES, made, write_svhn
from tests.integration.conftest import Outcome
from tests.integration.spaces import space
from tests.integration.test_errors import refused

Fmoe = Callable[..., Outcome]
NAME = "small-cifar10"
FEW = ("--attacks", "fgsm")
NOT_THERE = "the training images were not there to look for leaks"
OTHERS = "leaks were looked for among other training images than those it was trained on"
OTHER_TEST = "judged on other test images than those of the data set that it was trained with"
UNREAD = "whether test images are among the training images was not looked for"

SAID: dict[str, tuple[str | None, str | None]] = {
    "same": (None, None),
    "same in another layout": (None, None),
    "other training images": (OTHERS, OTHERS),
    "an image more": (OTHERS, OTHERS),
    "other training labels": (OTHERS, OTHERS),
    "other test images": (OTHER_TEST, OTHER_TEST),
    "other test labels": (OTHER_TEST, OTHER_TEST),
    "test files alone": (UNREAD, NOT_THERE),
    "training files damaged": (UNREAD, NOT_THERE),
}
"""The note of an evaluation on each state, and what it lacks for a promotion."""
REFUSED = {"training files alone": "no test-*.parquet", "gone": "no such data folder"}


def save(folder: Path, seed: int, run_id: str = "") -> Path:
    """A model folder of one untrained expert, whose card says that it comes of the state `same`."""
    recipe = config.load(
        "cifar10-small",
        ["experts.roles={benign: {count: 1}}", "experts.backbone.width=4", f"seed={seed}"],
    )
    made("same", folder / "data")
    whole = data.load("cifar10", folder / "data", val_images=2)
    model_folder.save_model(
        Folder.at(folder / "model"),
        assembly.seeded_mixture(recipe).state_dict(),
        recipe,
        data_digest=whole.digest,
        part_digests={"train_digest": whole.train_digest, "test_digest": whole.test_digest},
        metrics={},
        extra={"selected_on": "validation", "run_id": run_id},
    )
    shutil.rmtree(folder / "data")
    return folder / "model"


@pytest.fixture(scope="module")
def model(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("one"), 0)


def about_data(found: list[str]) -> list[str]:
    """Without what every evaluation by one attack on four images lacks or says."""
    beside = (
        "class-imbalance",
        "not evaluated with",
        "judged on 4 images",
        "2000 images were asked for",
    )
    return [line for line in found if not line.startswith(beside)]


def test_the_table_is_whole() -> None:
    assert SAID.keys() | REFUSED.keys() == STATES.keys()


@pytest.mark.parametrize("state", STATES)
def test_evaluate(model: Path, fmoe: Fmoe, state: str, tmp_path: Path) -> None:
    folder = made(state, tmp_path / "data")
    outcome = fmoe("evaluate", model, *FEW, "--data-dir", folder, "--json")
    if state in REFUSED:
        refused(outcome, REFUSED[state])
        return
    answer, (note, lack) = outcome.json, SAID[state]
    assert answer["images"] == 4
    assert answer["test_digest"] == data.digest(data.read("cifar10", "test", folder))
    assert (answer["digest"] is None) == (answer["leaked"] is None) == (lack == NOT_THERE)
    assert [one.split(":")[0] for one in about_data(answer["notes"])] == [note] * bool(note)
    assert about_data(lacks(answer)) == [lack] * bool(lack)


@pytest.mark.parametrize("state", ["same in another layout", "test files alone", "gone"])
def test_compare(model: Path, fmoe: Fmoe, state: str, tmp_path: Path) -> None:
    """Two models by test files alone, under the first one's recipe."""
    other, folder = save(tmp_path, 1), made(state, tmp_path / "data")
    page = tmp_path / "page"
    outcome = fmoe(
        "compare", model, other, *FEW, "--data-dir", folder, "--json", "--report", page
    )  # fmt: skip
    if state in REFUSED:
        refused(outcome, REFUSED[state])
        return
    one, two = outcome.json["models"]
    assert one["test_digest"] == two["test_digest"]
    assert {row["attack"] for row in outcome.json["differences"]} == {"clean", "fgsm", "worst_case"}
    said = UNREAD in (page / "index.html").read_text()
    assert said == (state == "test files alone")


def test_a_page_without_training_images(model: Path, fmoe: Fmoe, tmp_path: Path) -> None:
    folder, page = made("test files alone", tmp_path / "data"), tmp_path / "page"
    answer = fmoe("evaluate", model, *FEW, "--data-dir", folder, "--report", page, "--json").json
    text = (page / "index.html").read_text()
    for part in (answer["test_digest"], "training images not read", "not looked for", UNREAD):
        assert part in text


def test_other_class_names_are_a_flag(model: Path, fmoe: Fmoe, tmp_path: Path) -> None:
    write_svhn(tmp_path / "data")
    options = (*FEW, "--data", "svhn", "--data-dir", tmp_path / "data")
    outcome = fmoe("evaluate", model, *options, "--report", tmp_path / "page")
    assert "flag: other-classes: what is '0' in svhn is 'airplane' to the model" in outcome.out
    assert "other-classes" in (tmp_path / "page" / "index.html").read_text()
    outcome = fmoe("compare", model, model, *options)
    assert f"{model}: flag: other-classes" in outcome.out
    refused(fmoe("evaluate", model, "--data", "digits"), "--data digits: its images are 1x8x8")


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_limit_of_no_images(model: Path, fmoe: Fmoe, limit: str) -> None:
    refused(fmoe("evaluate", model, "--limit", limit), "--limit")


def test_a_limit_beyond_the_images(model: Path, fmoe: Fmoe, tmp_path: Path) -> None:
    folder = made("same", tmp_path)
    answer = fmoe("evaluate", model, *FEW, "--data-dir", folder, "--limit", "9", "--json").json
    assert (answer["images"], answer["test_images"]) == (4, 4)
    assert "9 images were asked for, and there are 4" in answer["notes"]


# What is kept with a registered version


def of_its_own(patched: pytest.MonkeyPatch, home: Path) -> None:
    """A store, which mlflow names in the environment: that ends with the patch."""
    patched.setenv("FMOE_HOME", str(home))
    patched.setenv("MLFLOW_TRACKING_URI", "")
    patched.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="module")
def registered_once(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FMOE_HOME of a registry with one version, not evaluated."""
    home = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patched:
        of_its_own(patched, home)
        tracker = tracking.Tracker.start("one", {}, {}, None)
        folder = save(home / "one", 0, tracker.run_id)
        network, _, card = model_folder.load_model(Folder.at(folder))
        tags = {"fmoe.sha256": card["sha256"]}
        tracker.register(network, folder, NAME, (3, 32, 32), tags)
        tracker.finish("FINISHED")
    return home


@pytest.fixture
def registered(registered_once: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    of_its_own(monkeypatch, registered_once)
    return MlflowClient(tracking.store_uri())


def test_a_version_keeps_evaluations_on_its_own_test_images(
    registered: Any, fmoe: Fmoe, tmp_path: Path
) -> None:
    """By test files alone, too; no figure on other images stands in its tags afterwards."""
    uri = f"models:/{NAME}/1"

    def evaluate(state: str, *options: str) -> dict[str, Any]:
        folder = made(state, tmp_path / state)
        return fmoe("evaluate", uri, *FEW, "--data-dir", folder, *options, "--json").json

    assert evaluate("other test images")["not_recorded"] == OTHER_TEST
    assert "fmoe.eval.images" not in registered.get_model_version(NAME, "1").tags
    assert evaluate("test files alone")["recorded"] == uri
    tags = registered.get_model_version(NAME, "1").tags
    assert tags["fmoe.eval.images"] == "4"
    reason = fmoe("promote", NAME, "--json").json["reason"]
    assert NOT_THERE in reason
    write_svhn(tmp_path / "svhn")
    answer = fmoe(
        "evaluate", uri, *FEW, "--data", "svhn", "--data-dir", tmp_path / "svhn", "--json"
    ).json  # fmt: skip
    assert "(svhn, not cifar10)" in answer["not_recorded"]
    assert evaluate("other test labels", "--limit", "2")["not_recorded"] == OTHER_TEST
    assert registered.get_model_version(NAME, "1").tags == tags
    assert evaluate("same")["recorded"] == uri
    reason = fmoe("promote", NAME, "--json").json["reason"]
    assert NOT_THERE not in reason
    assert "not evaluated with" in reason


# An unfinished study: claimed, and then refused for more workers than there are

IS_DIFFERENT: dict[str, str | None] = {
    "same": None,
    "same in another layout": None,
    "test files alone": "no train-*.parquet",
    "training files damaged": "not a readable Parquet file",
    "gone": "no such data folder",
    "other training images": "has other training images or labels: give the data",
    "an image more": "has other training images or labels: give the data",
    "other training labels": "has other training images or labels: give the data",
    "other test images": None,  # nothing opens them before the winner is known
    "other test labels": None,
    "training files alone": None,
}


def test_the_table_of_studies_is_whole() -> None:
    assert IS_DIFFERENT.keys() == STATES.keys()


TOO_MANY = "--workers-per-trial 64"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("begun")


@pytest.mark.parametrize("state", ["begun", *STATES])
def test_an_unfinished_study_is_resumed_with_its_data(
    ray_session: None,
    fmoe: Fmoe,
    begun: Path,
    state: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One study for all states: a refusal changes nothing."""
    monkeypatch.setenv("FMOE_HOME", str(begun))
    file = space(
        begun,
        {"gate.temperature": {"uniform": [0.5, 2]}},
        recipe="cifar10-small",
        set={"data.val_images": 2, "data.train_images": None},
    )
    command = ("tune", file, "--name", "mine", *TOO_MANY.split())
    if state == "begun":
        refused(fmoe(*command, "--data-dir", made("same", tmp_path)), TOO_MANY)
        return
    assert (begun / "studies" / "mine" / "data.json").exists()
    now = made(state, tmp_path / "now")
    refused(fmoe(*command, "--data-dir", now, "--resume"), IS_DIFFERENT[state] or TOO_MANY)


def test_answers_are_json(model: Path, fmoe: Fmoe, tmp_path: Path) -> None:
    """`digest: null` and not a word of Python's."""
    folder = made("test files alone", tmp_path)
    outcome = fmoe("evaluate", model, *FEW, "--data-dir", folder, "--json")
    assert '"digest": null' in outcome.out
    assert json.loads(outcome.out)["leaked"] is None
