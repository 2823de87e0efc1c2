"""Every kind of docs/extending.md, added to a copy of the code and used by the commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.extending.edited_copy import edited_copy
from tests.extending.test_data_set import write_original

DRAWN = {"kind": "walk", "eps": [0.05, 0.1]}
PHASE = {
    "epochs": 3,
    "batch_size": 32,
    "optimizer": {"kind": "adamw", "lr": 0.002, "schedule": {"kind": "linear", "end": 0.1}},
    "loss": {"kind": "focal", "gamma": 1.5},
    "after_step": [{"kind": "swa", "start": 2}],
    "validation": {"attack": {"kind": "walk", "eps": 0.1}, "images": 30},
}
RECIPE = {
    "data": {"name": "tiles"},
    "experts": {
        "backbone": {"kind": "plain", "depth": 2},
        "roles": {"benign": {"count": 1}, "walk": {"count": 1, "attack": DRAWN}},
        "train": PHASE,
    },
    "gate": {"kind": "colours", "width": 3},
    "joint": {**PHASE, "attack": DRAWN},
    "evaluate": {"norm": "l2", "eps": 0.5, "attacks": ["fgsm", "corner"], "images": 16},
}
SPACE = {
    "recipe": "mine.yaml",
    "metrics": {"val_sureness": "max"},
    "final": {"top": 1, "attacks": ["corner"]},
    "scheduler": {"kind": "median"},
    "searcher": {"kind": "sobol"},
    "space": {
        "gate.width": {"int": [2, 4]},
        "experts.backbone.depth": {"choice": [2, 3]},
        "joint.loss.gamma": {"uniform": [0, 2]},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The edited code, images, a recipe and a space."""
    edited_copy(tmp_path)
    write_original(tmp_path / "images")
    for name, tree in (("mine", RECIPE), ("space", SPACE)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own = {"PYTHONPATH": str(folder), "FMOE_HOME": str(folder / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments, "--json"],
        cwd=folder,
        env={**env, **own, "FMOE_DATA_DIR": str(folder / "images")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fmoe(folder: Path, *arguments: str) -> dict[str, Any]:
    process = started(folder, *arguments)
    out, err = process.communicate()
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def killed_after_an_epoch(folder: Path, *arguments: str) -> None:
    process = started(folder, *arguments)
    checkpoint = folder / "home/runs/mine/joint/epoch-0000/manifest.json"
    while not checkpoint.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.kill()
    process.communicate()


def test_the_pages_kinds_from_a_recipe_to_a_pulled_model(folder: Path) -> None:
    train = ("train", "mine.yaml", "--name", "mine")
    killed_after_an_epoch(folder, *train)
    trained = fmoe(folder, *train)
    assert (trained["epochs"], trained["norm"], trained["images"]) == (3, "l2", 16)
    assert set(trained["test"]) == {"clean", "fgsm", "corner"}
    history = (folder / "home/runs/mine/metrics.jsonl").read_text().splitlines()
    assert all(0 < json.loads(line)["val_sureness"] <= 1 for line in history)
    pulled = fmoe(folder, "pull", trained["model_uri"], "--to", "model")
    assert pulled["digest"] == trained["digest"]
    tree = yaml.safe_load((folder / "model/config.yaml").read_text())
    assert tree["joint"]["optimizer"]["schedule"] == {"kind": "linear", "end": 0.1}
    assert fmoe(folder, "count", "model")["parameters"] > 100
    judged = fmoe(folder, "evaluate", trained["model_uri"], "--attacks", "corner", "--limit", "8")
    assert (judged["norm"], judged["images"]) == ("l2", 8)
    assert judged["recorded"] == trained["model_uri"]


def test_the_pages_kinds_in_a_study(folder: Path) -> None:
    study = fmoe(folder, "tune", "space.yaml", "--trials", "3")
    assert study["counts"]["failed"] == 0
    assert [set(trial["metrics"]) for trial in study["trials"]] == [{"val_sureness"}] * 3
    assert fmoe(folder, "pull", study["best"]["model_uri"], "--to", "model")["digest"]
