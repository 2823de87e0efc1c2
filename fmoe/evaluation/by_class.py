"""Figures of each class, and what is taken for what under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fmoe.evaluation.chunk import ATTACKED, CLEAN, PREDICTION, share
from fmoe.evaluation.findings import Findings

IMBALANCE = 2.0
"""Times the images of the smallest class from which on the largest is told of."""
ATTACKS = ("pgd50", "pgd", "fgsm")
"""Of which the first that was run tells what an attacked image is taken for."""


def by_class(found: Findings, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Class to `images`, `clean`, `robust` (by attack) and `worst_case`; None where there are no
    images of it. names: of the labels, in their order."""
    verdicts = {"clean": found.right, **found.verdicts, "worst_case": found.survivors}
    figures: dict[str, dict[str, Any]] = {}
    for label, name in enumerate(names):
        rows = found.labels == label
        of = {key: share(said[rows]) if rows.any() else None for key, said in verdicts.items()}
        clean, worst = of.pop("clean"), of.pop("worst_case")
        figures[name] = {
            "images": int(rows.sum()), "clean": clean, "robust": of, "worst_case": worst,
        }  # fmt: skip
    return figures


def balanced(figures: Mapping[str, Mapping[str, Any]], key: str) -> float:
    """The mean over classes of `clean` or `worst_case`."""
    known: list[float] = [of[key] for of in figures.values() if of[key] is not None]
    return sum(known) / len(known)


def imbalance(figures: Mapping[str, Mapping[str, Any]], numbers: Sequence[int]) -> list[str]:
    """A note where some classes have many more images than others. numbers: of the whole test
    split, of which few images may have been judged."""
    counts = dict(zip(figures, numbers, strict=True))
    missing = [name for name, count in counts.items() if not count]
    notes = []
    if missing:
        some = f"{len(missing)} of {len(counts)} classes, first {missing[0]!r}"
        notes.append(f"class-imbalance: no image of {some}")
    there = {name: count for name, count in counts.items() if count}
    most, least = max(there, key=there.__getitem__), min(there, key=there.__getitem__)
    if there[most] > IMBALANCE * there[least]:
        notes.append(
            f"class-imbalance: {there[most]} test images of {most!r} and {there[least]} of "
            f"{least!r}; the mean over classes is {balanced(figures, 'clean'):.1%} clean and "
            f"{balanced(figures, 'worst_case'):.1%} in the worst case"
        )
    return notes


def confusion(found: Findings, classes: int) -> dict[str, Any] | None:
    """`attack`, and `images`: counts [K,K] of labels (rows) and of what the images are taken for
    under that attack (columns), which for those that are wrong without it is what they are taken
    for anyway; `other` [K]: taken for no class of the data set. None where no such attack was run.
    """
    run = [name for name in ATTACKS if PREDICTION + name in found.columns]
    if not run:
        return None
    said = found.columns[CLEAN]
    for name in reversed(run):  # the strongest last: earlier ones took images away from it
        attacked = found.columns[ATTACKED + name]
        said = torch.where(attacked, found.columns[PREDICTION + name], said)
    images = counted(found.labels, said, classes)
    other = torch.bincount(found.labels, minlength=classes) - images.sum(1)
    return {"attack": run[0], "images": images.tolist(), "other": other.tolist()}


def counted(labels: Tensor, said: Tensor, classes: int) -> Tensor:
    """int64 [K,K] of labels and predictions."""
    known = (said >= 0) & (said < classes)
    pairs = labels[known] * classes + said[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)
