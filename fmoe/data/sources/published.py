"""A known data set's published files, or the set itself, as a source like any other.

Files in the form of MNIST's may be another set's (its letters, say): in a folder that is not named
as a known set's, their classes are the numbers of the labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.data import sets as data_sets
from fmoe.data.kinds import Published
from fmoe.data.own import PartName
from fmoe.data.readers import Arrays as Read
from fmoe.data.readers import idx
from fmoe.data.readers.arrays import PARTS
from fmoe.data.reading import Opened
from fmoe.data.sources.labels import numbered
from fmoe.data.sources.source import Arrays, Source
from fmoe.data.splits import Split
from fmoe.errors import UserError


def found(place: Path) -> bool:
    return bool(idx.found(place) or _known(place))


def named(name: str, data_dir: str | Path | None) -> Source:
    """A data set that there is. Raises `UserError` where it cannot be read."""
    opened = Opened.of(name, data_dir, False, None)
    whole: dict[PartName, Split] = {part: opened.images(part).held() for part in PARTS}
    if (val := opened.val()) is not None:
        whole["val"] = val.held()
    arrays = {part: (split.images.numpy(), split.labels.numpy()) for part, split in whole.items()}
    return of_arrays(name, opened.data_set.facts.classes, arrays)


def source(place: Path) -> Source:
    """Raises `UserError` for files that cannot be read, or of two sets."""
    known = _known(place)
    if len(known) > 1:
        raise UserError(f"{place}: holds {' and '.join(each.name for each in known)}; give one")
    if known:
        read = {part: data_sets.layout(known[0], place).read(part) for part in PARTS}
        return of_arrays(str(place), known[0].info.classes, read)
    layouts = idx.found(place)
    if len(layouts) > 1:
        raise UserError(f"{place}: holds {layouts[0].example} and {layouts[1].example}; keep one")
    parts = {part: layouts[0].read(part) for part in PARTS}
    given: dict[PartName | None, np.ndarray[Any, Any]] = {part: parts[part][1] for part in PARTS}
    classes, _ = numbered(str(place), given)
    return of_arrays(str(place), classes, parts)


def of_arrays(name: str, classes: tuple[str, ...], parts: Mapping[Any, Read]) -> Source:
    made: dict[PartName | None, Arrays] = {
        part: Arrays(images, labels.astype(np.int64), f"{name} {part}")
        for part, (images, labels) in parts.items()
    }
    return Source(name, classes, made)


def _known(place: Path) -> list[Published]:
    """The sets of which there are published files that can be no other's."""
    names, unnamed = {place.name, place.parent.name}, {at.example for at in idx.found(place)}
    known = []
    for data_set in data_sets.DATA_SETS:
        if isinstance(data_set, Published):
            examples = {layout.example for layout in data_set.originals(place)}
            if examples - unnamed or (examples and data_set.folders & names):
                known.append(data_set)
    return known
