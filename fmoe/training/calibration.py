"""A mixture's `confidence`, fitted on validation images (MixedNUTS, arXiv 2402.02263).

What decides is the robust part's margins: a mapped answer of margin m stands against whatever the
accurate part says where weight * m >= 1 - weight. So each map has the smallest weight by which the
wanted share of what withstands still does, and the map is chosen whose sum is right most often.
Once after training (`fmoe calibrate`), or after every epoch (`joint.calibrate`): then an epoch's
metrics are those with the map, and say which.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fmoe import assembly, model_folder
from fmoe.attacks import PGD, Objective
from fmoe.config import Config, validate
from fmoe.data import Split
from fmoe.errors import UserError
from fmoe.fast.folding import folded
from fmoe.models.confidence import Calibrate, Confidence, TwoParts
from fmoe.models.mixture import Mixture
from fmoe.numerics.draw import Draw, shard
from fmoe.numerics.precision import exact
from fmoe.numerics.worker import Worker, reduce_sum
from fmoe.storage.folder import Folder

SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)
POWERS = (1.0, 2.0, 3.0, 4.0)
SCALES = tuple(0.1 * 1.5**step for step in range(14))
"""Of the maps that are tried."""
HAIR = 1e-4  # above equality, which rounding would decide
LOSSES: tuple[Objective, ...] = ("ce", "margin")
BATCH = 250
FITTED = ("weight", "shift", "power", "scale")


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
class Fitting:
    """parts: which experts are which. keep: the share of what withstands the attack on the robust
    part that shall withstand whatever the accurate one says."""

    parts: TwoParts
    keep: float
    attack: PGD

    @classmethod
    def of(cls, config: Config, calibrate: Calibrate) -> Fitting:
        """Raises `UserError` for roles that the mixture has not."""
        begin = Confidence(accurate=calibrate.accurate, weight=0.5)
        parts = assembly.two_parts(with_confidence(config, begin).experts, begin)
        threat = config.evaluate.threat
        attack = PGD(eps=threat.eps, norm=threat.norm, steps=calibrate.steps)
        return cls(parts, calibrate.keep, attack)


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
    calibrate: Calibrate,
    progress: Callable[[int], None] = lambda done: None,
) -> Fitted:
    """The configuration with `confidence` fitted to the model, which has it from then on.

    Raises `UserError` for roles that the mixture has not, and where `keep` cannot be kept.
    """
    by = Fitting.of(config, calibrate)
    given = answers(model, by, val, config.seed, Worker(), progress)
    confidence, clean = fit(given, calibrate.accurate, calibrate.keep)
    model.confidence = replace(by.parts, confidence=confidence)
    figures = {
        "clean_before": right(given.plain, val.labels),
        "clean_accurate_part": right(given.accurate, val.labels),
        "clean_robust_part": right(given.robust, val.labels),
        "robust_part_attacked": right(given.attacked, val.labels),
        "clean": clean,
        "images": len(val),
    }
    return Fitted(with_confidence(config, confidence), figures)


def judged(
    by: Fitting,
    model: Mixture,
    val: Split,
    seed: int,
    worker: Worker,
    judge: Callable[[], dict[str, float]],
) -> dict[str, float]:
    """What `judge` finds of the model with `confidence` fitted to it, and that as `confidence_*`;
    of the model as it is where none can be fitted. The model stays as it is."""
    before, accurate = model.confidence, by.parts.confidence.accurate
    try:
        fitted, _ = fit(answers(model, by, val, seed, worker), accurate, by.keep)
    except UserError:  # nothing withstands yet, or not by enough
        return judge()
    model.confidence = replace(by.parts, confidence=fitted)
    try:
        metrics = judge()
    finally:
        model.confidence = before
    return metrics | {f"confidence_{name}": getattr(fitted, name) for name in FITTED}


def deployed(config: Config, metrics: Mapping[str, float]) -> Config:
    """Of the mixture that an epoch of these metrics deploys: with what was fitted to it."""
    calibrate = config.joint.calibrate
    if calibrate is None or "confidence_weight" not in metrics:
        return config
    values = {name: metrics[f"confidence_{name}"] for name in FITTED}
    return with_confidence(config, Confidence(accurate=calibrate.accurate, **values))


def fitted_before(metrics: dict[str, float], good: Mapping[str, float]) -> dict[str, float]:
    """These metrics for weights that are the good epoch's again: what was fitted is, too."""
    names = {f"confidence_{name}" for name in FITTED}
    others = {name: value for name, value in metrics.items() if name not in names}
    return others | {name: good[name] for name in names & good.keys()}


def with_confidence(config: Config, confidence: Confidence) -> Config:
    tree = {**config.plain(), "confidence": confidence.model_dump(mode="json")}
    return validate(tree, "calibrate")


@exact()
def answers(
    model: Mixture,
    by: Fitting,
    val: Split,
    seed: int,
    worker: Worker,
    progress: Callable[[int], None] = lambda done: None,
) -> Answers:
    """Attacked on the robust part alone, by each of `LOSSES`; of the two the one that leaves less
    margin. The same whatever the workers, who share the images."""
    view, parts = folded(model.eval()), by.parts
    assert isinstance(view, Mixture)

    def robust(x: Tensor) -> Tensor:
        return parts.part(view.mix, *view.parts(x), parts.robust)

    with torch.no_grad():
        classes = robust(val[:1].pixels()).shape[1]
    found = torch.zeros(4, len(val), classes, device=worker.device)
    for start in range(0, len(val), BATCH):
        total = min(BATCH, len(val) - start)
        rows = shard(total, worker.rank, worker.world_size)
        own = slice(start + rows.start, start + rows.stop)
        x, y = val[own].pixels(), val[own].labels
        if len(y) == 0:
            continue
        with torch.no_grad():
            given = view.parts(x)
            clean = [view.mix(*given)]
            clean += [parts.part(view.mix, *given, of) for of in (parts.accurate, parts.robust)]
        under = []
        for loss in LOSSES:
            attack = by.attack.model_copy(update={"loss": loss})
            draw = Draw(seed, "calibration", start, loss, total=total, rows=rows)
            x_adv = attack(robust, x, y, draw=draw)
            with torch.no_grad():
                under.append(robust(x_adv))
        less = margins(under[0], y) <= margins(under[1], y)
        found[:, own] = torch.stack([*clean, torch.where(less[:, None], under[0], under[1])])
        progress(start + total)
    plain, accurate, robust_part, attacked = reduce_sum(found, worker)
    return Answers(plain, accurate, robust_part, attacked, val.labels)


def fit(given: Answers, accurate: Sequence[str], keep: float) -> tuple[Confidence, float]:
    """The map and the weight that are right most often on clean images (of several the one to which
    the labels are likeliest), and how often."""
    y, withstanding = given.labels, given.withstanding
    if not withstanding.any():
        raise UserError("nothing withstands the attack: there is no robustness to keep")
    best: tuple[Confidence, tuple[float, float]] | None = None
    for shift, power, scale in itertools.product(SHIFTS, POWERS, SCALES):
        shape = {"shift": shift, "power": power, "scale": scale}
        tried = Confidence(accurate=list(accurate), weight=0.5, **shape)
        kept = margins(tried.mapped(given.attacked[withstanding]), y[withstanding])
        weight = 1 / (1 + kept.quantile(1 - keep, interpolation="lower").item()) + HAIR
        if weight >= 1:
            continue
        tried = tried.model_copy(update={"weight": weight})
        log_p = TwoParts(tried, (), ()).sum(given.accurate, tried.mapped(given.robust))
        score = right(log_p, y), -F.nll_loss(log_p, y).item()
        if best is None or score > best[1]:
            best = tried, score
    if best is None:
        raise UserError(f"no map keeps {keep:.1%} of what withstands: ask for less")
    chosen, (clean, _) = best
    return chosen, clean


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
        counts=told.get("images"),
        metrics={},  # those of the card are of the model as it was
        facts=model_folder.facts_of(card),
        extra={**kept, "calibration": fitted.to_json()},
    )
