"""A run's result is given again for the data that it was made from, and for no other.

The real command, without the hours of training: it claims its folder and is then refused for a
batch that is larger than the data set. What a finished run leaves besides is put there by hand, and
that it is given is asked of the claim alone, after which the command looks at MLflow.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fmoe import config, data
from fmoe.errors import UserError
from fmoe.paths import home
from fmoe.storage.folder import Folder
from pipelines.data_claim import claim_data
from pipelines.training.claim import claim_with_data
from pipelines.training.run import Request, run
from tests.data_states import STATES, made

SETTINGS = ("data.val_images=2", "experts.train.batch_size=4", "joint.batch_size=5000")
CLEAN = 0.5
RESULT = {
    "run_dir": "x",
    "run_id": "0" * 32,
    "model_uri": "models:/x/1",
    "digest": "0" * 64,
    "test": {"clean": CLEAN},
    "images": 4,
    "eps": 0.1,
}
PASSED = "batch_size: 5000 is more"
"""What the command says once it has taken the data for its own."""

IS_DIFFERENT: dict[str, str | None] = {
    "same": None,
    "same in another layout": None,
    "other training images": "has other training images or labels: give the data",
    "an image more": "has other training images or labels: give the data",
    "other training labels": "has other training images or labels: give the data",
    "other test images": "has other test images or labels: give the data",
    "other test labels": "has other test images or labels: give the data",
    "test files alone": "no train-*.parquet",
    "training files alone": "no test-*.parquet",
    "training files damaged": "not a readable Parquet file",
    "gone": "no such data folder",
}
"""What is said of each state, where it is not the same data."""


def train(data_dir: Path) -> str:
    """What the command is refused with."""
    request = Request("cifar10-small", overrides=SETTINGS, name="mine", data_dir=str(data_dir))
    with pytest.raises(UserError) as caught:
        run(request)
    return str(caught.value)


def given(data_dir: Path) -> float:
    """What a finished run says of its clean accuracy, once the data are found to be its own."""
    settings = config.load("cifar10-small", SETTINGS)
    _, result = claim_with_data(
        Folder.at(home() / "runs" / "mine"), settings, data_dir, Folder.at(home() / "streamed")
    )
    assert result is not None
    return float(result["test"]["clean"])


def begun(folder: Path) -> Path:
    """The folder of a run that was begun on the data in `folder`."""
    assert PASSED in train(made("same", folder))
    return home() / "runs" / "mine"


def finish(run_folder: Path) -> None:
    (run_folder / "result.json").write_text(json.dumps(RESULT))


def test_the_table_is_whole() -> None:
    assert IS_DIFFERENT.keys() == STATES.keys()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("finished", [True, False], ids=["finished", "unfinished"])
def test_train_again(finished: bool, state: str, tmp_path: Path) -> None:
    folder = begun(tmp_path / "before")
    if finished:
        finish(folder)
    shutil.rmtree(tmp_path / "before")
    now, differs = made(state, tmp_path / "now"), IS_DIFFERENT[state]
    if differs is None and finished:
        assert given(now) == CLEAN
        return
    said = train(now)
    assert (differs or PASSED) in said
    unreadable = differs is not None and "give the data" not in differs
    assert ("result.json" in said) == (unreadable and finished)


def test_the_refusal_names_run_both_data_and_the_remedy(tmp_path: Path) -> None:
    folder = begun(tmp_path / "before")
    finish(folder)
    now = made("other test images", tmp_path / "now")
    said = train(now)
    was, is_ = (
        data.digest(data.read("cifar10", "test", tmp_path / at)) for at in ("before", "now")
    )
    for part in (folder, was[:12], tmp_path / "before", is_[:12], now, "--data-dir", "--name"):
        assert str(part) in said
    assert "\n" not in said


def test_a_refusal_changes_nothing(tmp_path: Path) -> None:
    folder = begun(tmp_path / "before")
    finish(folder)
    for state in ("other training images", "other test labels", "gone"):
        train(made(state, tmp_path / state))
    assert given(tmp_path / "before") == CLEAN


def test_replaced_files_in_the_same_place_are_other_data(tmp_path: Path) -> None:
    finish(begun(tmp_path))
    assert given(tmp_path) == CLEAN
    made("other training labels", tmp_path)
    assert "other training images or labels" in train(tmp_path)


@pytest.mark.parametrize("state", ["same", "same in another layout", *list(IS_DIFFERENT)[2:7]])
def test_a_run_of_the_version_before(state: str, tmp_path: Path) -> None:
    """It left the digest of its data in `evaluation.json` alone."""
    folder = begun(tmp_path / "before")
    finish(folder)
    whole = data.load("cifar10", tmp_path / "before", val_images=2).digest
    (folder / "data.json").unlink()
    (folder / "evaluation.json").write_text(json.dumps({"data": "cifar10", "digest": whole}))
    now = made(state, tmp_path / "now")
    if IS_DIFFERENT[state] is None:
        assert given(now) == CLEAN
        assert json.loads((folder / "data.json").read_text())["digest"] == whole
    else:
        assert "has other images or labels: give the data" in train(now)
        assert given(tmp_path / "before") == CLEAN


@pytest.mark.parametrize("text", ["{", "[]", '{"train_digest": 3}', '{"from": ["x"]}'])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    folder = begun(tmp_path)
    (folder / "data.json").write_text(text)
    assert f"{folder}/data.json" in train(tmp_path)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("same in another layout", None),
        ("other training images", "other training images or labels"),
        ("other test images", "other test images or labels"),
    ],
)
def test_a_study_learns_of_its_test_images_at_its_end(
    state: str, said: str | None, tmp_path: Path
) -> None:
    """A claim on training data, which then grows by the test images."""
    folder = Folder.at(tmp_path / "study")
    before, now = made("same", tmp_path / "before"), made(state, tmp_path / "now")
    claim_data(folder, data.load_training("cifar10", before, val_images=2), before)
    claim_data(folder, data.load("cifar10", before, val_images=2), before)
    if said is None:
        claim_data(folder, data.load("cifar10", now, val_images=2), now)
        return
    with pytest.raises(UserError, match=said):
        claim_data(folder, data.load("cifar10", now, val_images=2), now)
