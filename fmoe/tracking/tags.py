"""What fmoe writes to MLflow's runs and registered versions, by the tag's name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

PREFIX = "fmoe."
DIGEST = "fmoe.sha256"
"""Of a version: of its weights."""
CARD_DIGEST = "fmoe.card_sha256"
DATA = "fmoe.data"
DATA_DIGEST = "fmoe.data_digest"
TRAIN_DIGEST = "fmoe.train_digest"
RECIPE = "fmoe.recipe"
REVISION = "fmoe.git_revision"
KIND = "fmoe.kind"
"""Of a run: `study` or `trial`; a training run has none."""
STUDY = "fmoe.study"
TRIAL = "fmoe.trial"
ERROR = "fmoe.error"
PROMOTING = "fmoe.promoting"
"""Of a registered model: the claim of the promotion that is under way."""
DRIVER = ("fmoe.driver", "fmoe.job_id", "fmoe.ray_head")
"""Of a run: the process that drives it."""
TEST = "fmoe.test_"
"""Begins the names of a version's accuracies on the test images."""
TESTED = "fmoe.tested."
"""Begins the names of what these accuracies are of: images, norm, eps, flags."""
EVALUATION = "fmoe.eval."
"""Begins the names of what `fmoe evaluate` recorded with a version."""
EVALUATED_FULL = f"{EVALUATION}full"
REPORT = f"{EVALUATION}report"
FLAGS, FLAG_LENGTH = 16, 200
"""How many flags, and how much of each, fit into a tag: MLflow's limit is 5,000 characters."""
NOTE = "mlflow.note.content"
"""Of a run: its description, in Markdown."""
USER, SOURCE, SOURCE_TYPE = "mlflow.user", "mlflow.source.name", "mlflow.source.type"
COMMIT, DIRTY = "mlflow.source.git.commit", "mlflow.source.git.dirty"
"""Of a run, as MLflow's own pages show them: who, with which command and code."""


def ours(values: Mapping[str, str]) -> dict[str, str]:
    """The values as tags of ours."""
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def tested(figures: Mapping[str, float]) -> dict[str, str]:
    return {f"{TEST}{name}": f"{value:.4f}" for name, value in figures.items()}


def tested_on(report: Mapping[str, Any]) -> dict[str, str]:
    """What the accuracies of an evaluation are of."""
    return {
        f"{TESTED}images": str(report["images"]),
        f"{TESTED}norm": str(report.get("norm", "linf")),
        f"{TESTED}eps": repr(report["eps"]),
        f"{TESTED}flags": flags(report["flags"]),
    }


def flags(raised: Sequence[str]) -> str:
    """As JSON that fits into a tag."""
    return json.dumps([flag[:FLAG_LENGTH] for flag in raised[:FLAGS]], ensure_ascii=False)


def of_alias(alias: str) -> str:
    """Begins the names of what a promotion noted of the version that has the alias."""
    return f"{PREFIX}{alias}."
