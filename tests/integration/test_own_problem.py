"""Own images, own networks, own code judged: the commands. The guides are run in test_pages.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

import fmoe as library
from fmoe import data, tracking
from tests.integration.conftest import Outcome
from tests.integration.test_interruption import wait_for

Fmoe = Callable[..., Outcome]
CLASSES = ("disc", "ring", "stripe")
SMALL = [
    "experts.backbone.width=4", "experts.roles.fgsm.count=1", "experts.roles.pgd.count=1",
    "experts.train.epochs=1", "experts.train.batch_size=32", "joint.epochs=3",
    "joint.batch_size=32", "joint.optimizer.lr=0.05", "gate.width=4",
    "joint.validation.images=16", "experts.train.validation.images=16",
]  # fmt: skip


def picture(kind: int, rng: np.random.Generator) -> Image.Image:
    """A shape in a colour on a dark ground, 40 x 48."""
    pixels = rng.integers(0, 60, (40, 48, 3)).astype(np.uint8)
    y, x = np.mgrid[:40, :48]
    radius = np.hypot(y - rng.integers(14, 26), x - rng.integers(16, 32))
    shape = [radius < 9, abs(radius - 9) < 2.5, (x + y) % 12 < 4][kind]
    pixels[shape] = rng.integers(150, 255, 3)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLASS/*.png."""
    root, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for kind, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(50):
            picture(kind, rng).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMOE_HOME", str(home))


def answer(done: Outcome) -> dict[str, Any]:
    assert done.code == 0, done.err
    return done.json


TIMM = [
    "experts.trunk=null", "experts.start=pretrained", "experts.roles.benign.count=0",
    "experts.roles.fgsm.backbone={kind: timm, name: test_resnet}",
    "experts.roles.pgd.backbone={kind: timm, name: test_vit}",
]  # fmt: skip


def test_timms_networks_killed_and_resumed(
    fmoe: Fmoe,
    ray_session: None,
    folder: Path,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A convolutional network and a transformer in one mixture, in l2: the same bits."""
    answer(fmoe("data", "prepare", folder, "--name", "small-shapes", "--size", "32", "--json"))
    attack = "{kind: pgd, norm: l2, eps: 0.5, steps: 2}"
    sets = [
        f"--set={one}"
        for one in [
            *SMALL, *TIMM, "data.name=small-shapes", "evaluate={norm: l2, eps: 0.5}",
            f"joint.attack={attack}", f"joint.validation.attack={attack}",
        ]
    ]  # fmt: skip
    command = ["train", "digits", *sets, "--name=timm", "--json"]
    whole = answer(fmoe(*command, "--storage", tmp_path / "whole"))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *command, f"--storage={tmp_path / 'killed'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FMOE_HOME": str(home)},
        start_new_session=True,
    )
    wait_for(tmp_path / "killed" / "runs" / "timm" / "joint", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    resumed = answer(fmoe(*command, "--storage", tmp_path / "killed"))
    assert resumed["digest"] == whole["digest"]
    assert resumed["norm"] == "l2"
    said = fmoe("predict", resumed["model_uri"], folder / "disc" / "1.png", "--json")
    assert answer(said)["predictions"][0]["label"] in CLASSES
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.store_uri())
    served = mlflow.pyfunc.load_model(resumed["model_uri"])
    x = data.load("small-shapes").test.pixels()[:4].contiguous()
    with torch.no_grad():
        expected = library.load(resumed["model_uri"])(x)
    rows = served.predict(x.numpy())
    np.testing.assert_allclose(list(rows["log_probabilities"]), expected.numpy(), atol=1e-4)
    assert set(rows["label"]) <= set(CLASSES)


CODE = """
import torch
from torch import nn
from fmoe import data, tracking

def plain():
    d = data.load("digits")
    x, y = d.train.pixels(), d.train.labels
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net

class Doctored(nn.Module):
    '''Probabilities, of images that somebody else has normalised.'''
    def __init__(self):
        super().__init__()
        self.net = plain()
    def forward(self, x):
        return self.net(x * 0.3760 + 0.3053).softmax(1)
"""


def test_a_mixture_beside_somebodys_models(
    fmoe: Fmoe, trained_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made again in each worker; flags say what is wrong with a doctored one."""
    (tmp_path / "their_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMOE_HOME", str(trained_once.home))
    models = (
        trained_once.answer["run_dir"],
        "python:their_nets:plain",
        "python:their_nets:Doctored",
    )
    found = answer(
        fmoe(
            "compare", *models, "--attacks", "fgsm,pgd,mixture,sweeps", "--limit", "60",
            "--eps", "0.1", "--workers", "2", "--report", tmp_path / "page", "--json",
        )
    )  # fmt: skip
    mixture, plain, doctored = found["models"]
    assert mixture["skipped"] == {}
    assert "not a mixture of experts" in plain["skipped"].values()
    assert plain["clean"] > 0.85 > doctored["clean"]
    assert not [flag for flag in plain["flags"] if flag.startswith(("probab", "outside"))]
    codes = {flag.partition(":")[0] for flag in doctored["flags"]}
    assert {"probabilities", "outside-normalisation"} <= codes
    assert {row["model"] for row in found["differences"]} == set(models[1:])
    assert (tmp_path / "page" / "index.html").exists()
    refused = fmoe("evaluate", "python:their_nets:nothing", "--data", "digits")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)
    no_eps = fmoe("evaluate", models[1], "--data", "digits", "--norm", "l2")
    assert "--norm l2: give --eps, too: the recipe's is of linf" in no_eps.err
