"""A trained mixture's `confidence`, fitted on validation images (MixedNUTS, arXiv 2402.02263).

What decides is the robust part's margins: a mapped answer of margin m stands against whatever the
accurate part says where weight * m >= 1 - weight. So each map has the smallest weight by which the
wanted share of what withstands still does, and the map is chosen whose sum is right most often.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmoe import assembly, model_folder
from fmoe.attacks import PGD, Objective
from fmoe.attacks.threat import Threat
from fmoe.config import Config, parsed
from fmoe.data import Split
from fmoe.errors import UserError
from fmoe.models.confidence import Confidence, TwoParts
from fmoe.models.mixture import Mixture
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import exact
from fmoe.storage.folder import Folder

SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
POWERS = (1.0, 2.0, 3.0, 4.0)
SCALES = tuple(0.1 * 1.5**step for step in range(14))
"""Of the maps that are tried."""
HAIR = 1e-4  # above equality, which rounding would decide
LOSSES: tuple[Objective, ...] = ("ce", "margin")
STEPS = 20
BATCH = 250


@dataclass(frozen=True)
class Answers:
    """Log-probabilities [N,K] of the mixture without `confidence` and of its two parts on clean
    images, of the robust part on attacked ones, and labels [N]."""

    plain: Tensor
    accurate: Tensor
    robust: Tensor
    attacked: Tensor
    labels: Tensor

    @property
    def withstanding(self) -> Tensor:
        return self.attacked.argmax(1) == self.labels


@dataclass(frozen=True)
class Fitted:
    """config: the model's, with its `confidence`. figures: of the images that it was fitted on."""

    config: Config
    figures: dict[str, float]

    @property
    def confidence(self) -> Confidence:
        assert self.config.confidence is not None
        return self.config.confidence

    def to_json(self) -> dict[str, Any]:
        return {"confidence": self.confidence.model_dump(mode="json"), "validation": self.figures}


def calibrated(
    model: Mixture,
    config: Config,
    val: Split,
    accurate: Sequence[str],
    keep: float,
    progress: Callable[[int], None] = lambda done: None,
) -> Fitted:
    """The configuration with `confidence` fitted to the model, which has it from then on.

    accurate: the roles whose experts are the accurate part; keep: the share of what withstands an
    attack that shall withstand whatever those say. Raises `UserError` for roles that the mixture
    has not, and where that cannot be kept.
    """
    begin = with_confidence(config, Confidence(accurate=list(accurate), weight=0.5))
    parts = assembly.two_parts(begin)
    assert parts is not None
    given = answers(model, parts, val, config.evaluate.threat, config.seed, progress)
    confidence, clean = fit(given, accurate, keep)
    fitted = with_confidence(config, confidence)
    model.confidence = assembly.two_parts(fitted)
    figures = {
        "clean_before": right(given.plain, val.labels),
        "clean_accurate_part": right(given.accurate, val.labels),
        "clean_robust_part": right(given.robust, val.labels),
        "robust_part_attacked": right(given.attacked, val.labels),
        "clean": clean,
        "images": len(val),
    }
    return Fitted(fitted, figures)


def with_confidence(config: Config, confidence: Confidence) -> Config:
    tree = {**config.plain(), "confidence": confidence.model_dump(mode="json")}
    return parsed(tree, "calibrate")


@exact()
def answers(
    model: Mixture,
    parts: TwoParts,
    val: Split,
    threat: Threat,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Attacked by PGD on the robust part alone, by each of `LOSSES`; of the two the one that leaves
    less margin."""

    def robust(x: Tensor) -> Tensor:
        return parts.part(model.mix, *model.parts(x), parts.robust)

    rows: list[tuple[Tensor, ...]] = []
    for start in range(0, len(val), BATCH):
        part = val[start : start + BATCH]
        x, y = part.pixels(), part.labels
        with torch.no_grad():
            given = model.parts(x)
            clean = [model.mix(*given)]
            clean += [parts.part(model.mix, *given, of) for of in (parts.accurate, parts.robust)]
        under = []
        for loss in LOSSES:
            attack = PGD(eps=threat.eps, norm=threat.norm, steps=STEPS, loss=loss)
            draw = Draw(seed, "calibration", start, loss, total=len(y))
            x_adv = attack(robust, x, y, draw=draw)
            with torch.no_grad():
                under.append(robust(x_adv))
        less = margins(under[0], y) <= margins(under[1], y)
        rows.append((*clean, torch.where(less[:, None], under[0], under[1]), y))
        progress(start + len(part))
    return Answers(*map(torch.cat, zip(*rows, strict=True)))


def fit(given: Answers, accurate: Sequence[str], keep: float) -> tuple[Confidence, float]:
    """The map and the weight that are right most often on clean images, and how often."""
    y, withstanding = given.labels, given.withstanding
    if not withstanding.any():
        raise UserError("nothing withstands the attack: there is no robustness to keep")
    best: tuple[Confidence, float] | None = None
    for shift, power, scale in itertools.product(SHIFTS, POWERS, SCALES):
        shape = {"shift": shift, "power": power, "scale": scale}
        tried = Confidence(accurate=list(accurate), weight=0.5, **shape)
        kept = margins(tried.mapped(given.attacked[withstanding]), y[withstanding])
        weight = 1 / (1 + kept.quantile(1 - keep).item()) + HAIR
        if weight >= 1:
            continue
        tried = tried.model_copy(update={"weight": weight})
        clean = right(TwoParts(tried, (), ()).sum(given.accurate, tried.mapped(given.robust)), y)
        if best is None or clean > best[1]:
            best = tried, clean
    if best is None:
        raise UserError(f"no map keeps {keep:.1%} of what withstands: ask for less")
    return best


def margins(log_p_BK: Tensor, y: Tensor) -> Tensor:
    """The label's probability less the largest other one [B]."""
    p = log_p_BK.exp()
    label = p.gather(1, y[:, None])[:, 0]
    return label - p.scatter(1, y[:, None], -1.0).amax(1)


def right(outputs_BK: Tensor, y: Tensor) -> float:
    return (outputs_BK.argmax(1) == y).double().mean().item()


def check_data(card: Mapping[str, Any], train_digest: str) -> None:
    """Raises `UserError` for other images than those out of which the model's validation split
    was cut: it may have been trained on some of them."""
    trained_on = card["data"].get("train_digest")
    if trained_on is not None and trained_on != train_digest:
        raise UserError(
            "the training images are not those that the model was trained on (their digest "
            "differs): some of the validation images may have been trained on; give its own data"
        )


def save(folder: Folder, model: Mixture, fitted: Fitted, card: Mapping[str, Any]) -> str:
    """The model folder of a calibrated model; card: of the model as it was. Gives the digest of the
    weights, which are the same."""
    told = card["data"]
    parts = {key: told[key] for key in ("train_digest", "test_digest") if key in told}
    kept = {key: card[key] for key in ("run_id", "selected_on") if key in card}
    return model_folder.save_model(
        folder,
        model.state_dict(),
        fitted.config,
        data_digest=told["digest"],
        part_digests=parts,
        metrics={},  # those of the card are of the model as it was
        facts=model_folder.facts_of(card),
        extra={**kept, "calibration": fitted.to_json()},
    )
