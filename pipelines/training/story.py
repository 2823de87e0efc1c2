"""What a training's run tells on its page: what is trained, and at its end what came out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fmoe import model_card
from fmoe.config import Config
from fmoe.data import Data, Images
from fmoe.markdown import block, code, paragraphs
from fmoe.model_card import Figures, percent

STEPS = {"pool": "experts", "joint": "joint training", "evaluate": "evaluation"}


def begun(settings: Config, recipe: str, data: Data[Images], command: str) -> str:
    return paragraphs(
        f"Recipe {code(recipe)} on {code(data.name)}. Not finished yet: the same command goes on.",
        block(command, "sh"),
        what(settings, data),
    )


def ended(
    settings: Config,
    data: Data[Images],
    command: str,
    report: Mapping[str, Any],
    answer: Mapping[str, Any],
) -> str:
    """report: of the evaluation on the test images; answer: what `fmoe train --json` prints."""
    figures = Figures.of(report)
    spent = answer["seconds"]
    took = ", ".join(f"{STEPS.get(step, step)} {spent[step]:.0f} s" for step in spent)
    uri = answer["model_uri"]
    return paragraphs(
        figures.headline() if figures else "",
        figures.table() if figures else "",
        figures.told_flags() if figures else "",
        f"Registered as {code(uri)}. {chosen(settings, data, answer)} Took: {took}.",
        block(f"fmoe.load({uri!r})   # in Python, after `import fmoe`", "python"),
        block(command, "sh"),
        what(settings, data),
    )


def chosen(settings: Config, data: Data[Images], answer: Mapping[str, Any]) -> str:
    """Which epoch, and by what."""
    key = "val_robust" if settings.joint.attack.adversarial else "val_clean"
    limit = settings.joint.validation.images or len(data.val)
    return (
        f"Epoch {answer['best_epoch'] + 1} of {answer['epochs']} was chosen, by "
        f"{code(key)} on {min(limit, len(data.val)):,} validation images "
        f"({percent(answer['validation'][key])})."
    )


def what(settings: Config, data: Data[Images]) -> str:
    """Data, experts, gate."""
    shape = " × ".join(map(str, data.facts.shape))
    return paragraphs(
        f"Data: {code(data.name)}, {len(data.train):,} training, {len(data.val):,} validation and "
        f"{len(data.test):,} test images of {shape}, {len(data.facts.classes):,} classes.",
        model_card.experts(settings),
    )
