"""A run with `joint.calibrate`: what it registers is judged and kept with what was fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fmoe import model_folder
from fmoe.storage.folder import Folder
from tests.integration.conftest import TRAIN, Outcome


def test_a_run_deploys_the_map_that_its_epoch_was_judged_with(
    fmoe: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMOE_HOME", str(tmp_path))
    branched = ("experts.start=fresh", "experts.trunk={stages: 3}", "gate={kind: features}")
    fit = ("joint.calibrate={keep: 0.6, steps: 2}", "evaluate.eps=0.02", "joint.epochs=2")
    sets = [f"--set={override}" for override in (*branched, *fit)]
    done = fmoe("train", "digits-whole", *TRAIN, *sets, "--workers", "2", "--json")
    assert done.code == 0, done.err
    run = Path(done.json["run_dir"])
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    chosen = history[done.json["best_epoch"]]
    model, settings, card = model_folder.load_model(Folder.at(run / "model"))
    assert settings.confidence is not None
    assert settings.confidence.weight == chosen["confidence_weight"]
    assert model.confidence is not None
    assert done.json["validation"]["val_clean"] == chosen["val_clean"]
    judged = fmoe("evaluate", run, "--attacks", "fgsm,pgd", "--json")
    assert judged.code == 0, judged.err
    assert judged.json["clean"] == done.json["test"]["clean"] == card["metrics"]["clean"]
    assert judged.json["robust"]["pgd"] == done.json["test"]["pgd"]
