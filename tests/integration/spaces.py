"""Spaces of studies that take seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import SMALL

BASE = dict(override.split("=", 1) for override in SMALL)
SET = {key: yaml.safe_load(value) for key, value in BASE.items()} | {
    "experts.train.batch_size": 32,
    "joint.batch_size": 32,
    "data.train_images": 320,
    "evaluate.images": 16,
    "evaluate.attacks": ["fgsm"],
}


def space(folder: Path, domains: dict[str, Any], **keys: Any) -> Path:
    tree = {
        "recipe": "digits",
        "set": {**SET, **keys.pop("set", {})},
        "final": {"top": 1, "attacks": ["pgd"]},
        "space": domains,
        **keys,
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file
