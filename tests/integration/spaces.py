"""Spaces of studies that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import SMALL

BASE = dict(override.split("=", 1) for override in SMALL)
SET = {key: yaml.safe_load(value) for key, value in BASE.items()} | {
    "experts.train.batch_size": 32,
    "joint.batch_size": 32,
    "data.train_images": 160,
    "evaluate.images": 16,
    "evaluate.attacks": ["fgsm"],
}


def space(folder: Path, domains: dict[str, Any], **keys: Any) -> Path:
    tree = {
        "recipe": "digits-whole",
        "set": {**SET, **keys.pop("set", {})},
        "final": {"top": 1, "attacks": ["pgd"]},
        "space": domains,
        **keys,
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def study(
    home: Path, file: Path, name: str, monkeypatch: pytest.MonkeyPatch, **budget: Any
) -> dict[str, Any]:
    """In this process, whose Ray session it uses; gives what `fmoe tune --json` prints."""
    from pipelines.study.run import Request, run

    monkeypatch.setenv("FMOE_HOME", str(home))
    # mlflow sets it when another test of this process gives it a store
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return run(Request(str(file), name=name, **budget))
