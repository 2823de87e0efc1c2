"""What there is of data sets, for people: which, where, and how many images of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmoe.data import own
from fmoe.data.kinds import Embedded
from fmoe.data.own import PartName
from fmoe.data.reading import Opened, given, origin, prepared_path
from fmoe.data.sets import DATA_SETS
from fmoe.data.splits import Images, Split


def built_in(data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """fmoe's. place: where the images are read from; None where they are not here (a folder that
    is given is not looked through)."""
    listed = []
    for data_set in DATA_SETS:
        here = (
            isinstance(data_set, Embedded)
            or given(data_dir) is not None
            or prepared_path(data_set.name).exists()
        )
        counts: dict[str, int | None] = dict.fromkeys(own.PART_NAMES)
        if data_set.images is not None:
            counts["train"], counts["test"] = data_set.images
        place = origin(data_set.name, data_dir) if here else None
        facts = data_set.facts.plain()
        listed.append({"name": data_set.name, **counts, **facts, "place": place})
    return listed


FIRST = 10_000
"""Training images of a set too large for memory that are looked at."""


def shown(name: str, data_dir: str | Path | None = None) -> tuple[dict[str, Any], Split]:
    """Counts of a data set, for JSON, and its training images (of a large set the first ones).
    Raises `UserError`."""
    opened = Opened.of(name, data_dir, None, None)
    train, val, test = opened.images("train"), opened.val(), opened.images("test")
    parts: dict[PartName, Images | None] = {"train": train, "val": val, "test": test}
    return {
        "name": name,
        **{part: None if images is None else len(images) for part, images in parts.items()},
        **opened.data_set.facts.plain(),
        "digest": opened.digest(train, val, test),
        "place": origin(name, data_dir),
        "per_class": {
            part: opened.counts(part, images) for part, images in parts.items() if images
        },
    }, (train[:FIRST] if opened.streamed else train).held()
