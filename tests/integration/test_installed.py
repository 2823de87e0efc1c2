"""A study and its winner's answer by the installed wheel, outside of the checkout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests import built
from tests.built import BUILT_FROM, Installed

SMALL = [
    "experts.backbone.width=4",
    "experts.train.epochs=1",
    "experts.train.validation.images=32",
    "experts.roles.fgsm.count=1",
    "experts.roles.pgd.count=1",
    "joint.epochs=1",
    "joint.validation.images=32",
    "data.train_images=160",
    "data.val_images=40",
    "evaluate.images=16",
    "evaluate.attacks=[fgsm]",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    return built.installed(built.wheel(built.copied(folder / "source", BUILT_FROM)), folder)


def test_a_study_and_its_model(installed: Installed, tmp_path: Path) -> None:
    settings = [f"--set={override}" for override in SMALL]
    tuned = installed.run("fmoe", "tune", "digits", "--trials", "1", *settings, "--json")
    assert tuned.returncode == 0, tuned.stderr
    best = json.loads(tuned.stdout)["best"]
    assert best["model_uri"].startswith("models:/")
    grey = tmp_path / "grey.png"
    Image.new("L", (8, 8), 128).save(grey)
    said = installed.run("fmoe", "predict", best["model_uri"], grey, "--json")
    assert said.returncode == 0, said.stderr
    (answer,) = json.loads(said.stdout)["predictions"]
    assert sum(answer["gate_weights"].values()) == pytest.approx(1)
    asked = installed.run("python", "-c", "import fmoe, pipelines; print(fmoe.__file__)")
    assert Path(asked.stdout.strip()).is_relative_to(installed.packages)
