"""When a candidate may become champion: the rules, over what its evaluation left.

Figures are taken from the verdicts of single images, not from what a tag says of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from fmoe.evaluation.chunk import share
from fmoe.evaluation.intervals import paired
from fmoe.evaluation.settings import FULL, PROTOCOL
from fmoe.version import VERSION

REPORT, VERDICTS = "evaluation.json", "verdicts.parquet"
"""The files that an evaluation leaves."""
ENOUGH_IMAGES = 1000
"""Test images, or all of a smaller test split."""
ROUNDING = 1e-9
SAME = {
    "protocol": "protocol",
    "test_digest": "test images",
    "norm": "norm",
    "eps": "eps",
    "images": "number of images",
    "seed": "seed",
}
"""What two evaluations have in common that are compared image by image."""


@dataclass(frozen=True)
class Evidence:
    """A version's evaluation. verdicts: its table, a row per image."""

    version: int
    sha256: str
    report: Mapping[str, Any]
    verdicts: pa.Table

    def __post_init__(self) -> None:
        """Raises `ValueError` where the verdicts are not those that the report is of."""
        worst, images = self.report.get("worst_case"), self.report.get("images")
        if not isinstance(self.report.get("flags"), list):
            raise ValueError(f"{REPORT} records no flags")
        if len(self.verdicts) != images or abs(self.worst_case - float(worst or 0)) > ROUNDING:
            raise ValueError(f"{VERDICTS} is not of the same evaluation as {REPORT}")

    @property
    def survivors(self) -> Tensor:
        """bool [N]: right, and under every attack that was run."""
        table = self.verdicts
        alive = torch.tensor(table["prediction"].to_numpy() == table["label"].to_numpy())
        for name in table.column_names:
            if name.startswith("success_"):
                success = table[name].fill_null(False).to_numpy(zero_copy_only=False)
                alive &= ~torch.tensor(success.astype(bool))
        return alive

    @property
    def worst_case(self) -> float:
        return share(self.survivors)


def lacks(report: Mapping[str, Any]) -> list[str]:
    """What keeps an evaluation from being one of the full protocol."""
    lacking = []
    missing = sorted({*FULL} - {*report.get("attacks", ())})
    if missing:
        lacking.append(f"not evaluated with {', '.join(missing)} (--full)")
    if report.get("eps") != report.get("recipe_eps"):
        lacking.append(
            f"evaluated at eps {report.get('eps')}, the recipe's is {report.get('recipe_eps')}"
        )
    if report.get("norm", "linf") != report.get("recipe_norm", "linf"):
        lacking.append(
            f"evaluated in norm {report.get('norm')}, the recipe's is {report.get('recipe_norm')}"
        )
    lacking += [why] if (why := foreign(report)) else leaks_unknown(report)
    images, whole = (
        report.get("images", 0),
        min(ENOUGH_IMAGES, report.get("test_images", ENOUGH_IMAGES)),
    )
    if images < whole:
        lacking.append(f"judged on {images} images, at least {whole} are wanted")
    return lacking


def foreign(report: Mapping[str, Any]) -> str | None:
    """Why the images are not the test images of the data set that the model was trained on.

    None where they are. A card of before has no digest of the test images alone.
    """
    data, own = report.get("data"), report.get("trained_on_data")
    if own is not None and data != own:
        return f"judged on another data set than it was trained with ({data}, not {own})"
    test, own_test = report.get("test_digest"), report.get("trained_on_test")
    if own_test is not None:
        if test == own_test:
            return None
        return "judged on other test images than those of the data set that it was trained with"
    if report.get("digest") is None:
        return (
            "whether these are the test images of the data set that it was trained with is not "
            "known: its model.json has no digest of them alone, and the training images were not "
            "there"
        )
    if report["digest"] != report.get("trained_on"):
        return "judged on another data set than it was trained with"
    return None


def leaks_unknown(report: Mapping[str, Any]) -> list[str]:
    """Why nobody knows whether the test images are among those that the model was trained on."""
    if report.get("digest") is None:
        return ["the training images were not there to look for leaks"]
    if report["digest"] != report.get("trained_on"):
        return ["leaks were looked for among other training images than those it was trained on"]
    return []


def faults(candidate: Evidence, revision: str) -> list[str]:
    """What the evaluation lacks; revision: of the code that decides."""
    report, reasons = candidate.report, []
    if report.get("sha256") != candidate.sha256:
        reasons.append("its evaluation is of other weights")
    if report.get("protocol") != PROTOCOL:
        reasons.append(f"evaluated by protocol {report.get('protocol')}, this is {PROTOCOL}")
    by = report.get("versions", {}).get("fmoe"), report.get("revision")
    if by != (VERSION, revision):
        reasons.append(f"evaluated by fmoe {by[0]} ({by[1]}), this is {VERSION} ({revision})")
    if report.get("selected_on") != "validation":
        reasons.append(f"its epoch was selected on {report.get('selected_on')}, not on validation")
    return [*reasons, *lacks(report), *(f"flag {flag}" for flag in report["flags"])]


def not_better(candidate: Evidence, champion: Evidence) -> str | None:
    """Why the candidate does not beat the champion; None where it does.

    It must be better in worst-case accuracy by more than the paired 95% interval.
    """
    ours, theirs = candidate.report, champion.report
    if theirs.get("sha256") != champion.sha256:
        return f"champion {champion.version}'s evaluation is of other weights: evaluate it again"
    differ = [what for key, what in SAME.items() if ours.get(key) != theirs.get(key)]
    if not differ and candidate.verdicts["label"] != champion.verdicts["label"]:
        differ = ["labels"]
    if differ:
        return (
            f"champion {champion.version} was judged with other {', '.join(differ)}: "
            "evaluate it again"
        )
    low, high = paired(candidate.survivors, champion.survivors)
    gain = candidate.worst_case - champion.worst_case
    if low > 0:
        return None
    return (
        f"worst case {candidate.worst_case:.1%} against champion {champion.version}'s "
        f"{champion.worst_case:.1%}: {100 * gain:+.1f} points (95% {100 * low:+.1f} to "
        f"{100 * high:+.1f}) is not surely better"
    )
