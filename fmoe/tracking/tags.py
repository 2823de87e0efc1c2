"""What fmoe writes to MLflow's runs and registered versions, by the tag's name."""

from __future__ import annotations

from collections.abc import Mapping

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
EVALUATION = "fmoe.eval."
"""Begins the names of what `fmoe evaluate` recorded with a version."""
EVALUATED_FULL = f"{EVALUATION}full"
REPORT = f"{EVALUATION}report"


def ours(values: Mapping[str, str]) -> dict[str, str]:
    """The values as tags of ours."""
    return {f"{PREFIX}{name}": value for name, value in values.items()}


def tested(figures: Mapping[str, float]) -> dict[str, str]:
    return {f"{TEST}{name}": f"{value:.4f}" for name, value in figures.items()}


def of_alias(alias: str) -> str:
    """Begins the names of what a promotion noted of the version that has the alias."""
    return f"{PREFIX}{alias}."
