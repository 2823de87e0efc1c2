"""`--dry-run` of train and tune: what would be done, what it would take, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fmoe import config
from fmoe.paths import home
from pipelines.cli import main
from tests.conftest import SMALL


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--dry-run"])
    return int(ended.value.code or 0)


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(*arguments, "--json") == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


SETS = [part for value in SMALL for part in ("--set", value)]


def test_a_run_is_told_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "train", "digits-whole", *SETS, "--workers", "2")
    assert answer["state"] == "new"
    assert answer["data"] == {
        "name": "digits",
        "from": "of scikit-learn",
        "train": 1300,
        "val": 137,
        "test": 360,
    }
    assert (answer["experts"], answer["pretrained"], answer["workers"]) == (3, 3, "2")
    assert answer["register_as"] == "fmoe-digits"
    assert answer["plan"]["hours"] > 0
    assert answer["plan"]["gpus"] == 2
    assert list(home().iterdir()) == []
    assert run("train", "digits-whole", *SETS, "--workers", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"name   {answer['name']} (new)"
    assert lines[-1] == "nothing was started"


def test_a_run_that_was_begun_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    settings = config.load("digits-whole", SMALL)
    folder = home() / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(settings.to_yaml())
    given = ["train", "digits-whole", *SETS, "--name", "mine"]
    assert answered(capsys, *given)["state"] == "resumes"
    assert run(*given, "--set", "seed=5") == 2
    assert "is a run of other settings; give another --name" in capsys.readouterr().err
    assert [file.name for file in folder.iterdir()] == ["config.yaml"]


def test_a_study_is_told_with_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered(capsys, "tune", "digits", "--trials", "5")
    assert (answer["trials"], answer["plan"]["trials"]) == (5, 5)
    assert answer["state"] == "new"
    assert Path(answer["study_dir"]).name == answer["name"] or answer["study_dir"].endswith(
        answer["name"]
    )
    assert list(home().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "cifar10"), "cifar10"),  # whose files are not here
        (("train", "digits", "--register-as", "a/b"), "--register-as a/b: expected a name"),
        (("train", "digits", "--name", "../up"), "--name ../up: letters"),
        (("tune", "digits", "--set", "no.such=1"), "unknown key no"),
        (("tune", "digits", "--resume", "--name", "none"), "none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_would_be_refused_is(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert said in line
    assert list(home().iterdir()) == []
