"""Labels as numbers or text to labels 0..K-1 and the classes' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmoe.data.own import PartName
from fmoe.data.sources.source import MOST_CLASSES, Labels
from fmoe.errors import UserError

Given = Mapping[PartName | None, np.ndarray[Any, Any]]


def numbered(
    source: str, given: Given, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], dict[PartName | None, Labels]]:
    """Classes and labels of each part. names: of the classes, where the source has them.

    Text is sorted; of numbers without names, each is a class's name. Raises `UserError` for numbers
    that count nothing: below 0, or with gaps.
    """
    if odd := [labels.dtype for labels in given.values() if labels.dtype.kind not in "iuU"]:
        raise UserError(f"{source}: labels are {odd[0]}; expected integers or text")
    kinds = {labels.dtype.kind in "iu" for labels in given.values()}
    if kinds == {True, False}:
        raise UserError(f"{source}: labels are numbers in one part and text in another")
    learned = given.get("train", next(iter(given.values())))
    if kinds == {False}:
        if names is not None:
            raise UserError(f"{source}: labels are text, and there are names of classes beside")
        classes = sorted({str(label) for label in learned})
        known = {name: label for label, name in enumerate(classes)}
        for part, labels in given.items():
            if other := sorted({str(label) for label in labels} - known.keys()):
                raise UserError(
                    f"{source}: {part}: class {other[0][:80]!r} is not among those of train"
                )
        return tuple(classes), {
            part: np.array([known[str(label)] for label in labels], np.int64)
            for part, labels in given.items()
        }
    for part, labels in given.items():
        if len(labels) and (labels.min() < 0 or labels.max() >= MOST_CLASSES):
            raise UserError(
                f"{source}: {part or 'all'}: labels {labels.min()}..{labels.max()}; expected "
                f"0..{MOST_CLASSES - 1}, each an image's class"
            )
    count = int(learned.max()) + 1 if len(learned) else 0
    classes = [str(label) for label in range(count)] if names is None else list(names)
    return tuple(classes), {part: labels.astype(np.int64) for part, labels in given.items()}
