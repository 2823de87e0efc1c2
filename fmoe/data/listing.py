"""What there is of data sets, for people: which, where, and how many images of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fmoe.data import own
from fmoe.data.kinds import Embedded
from fmoe.data.reading import find, given, origin, own_val, prepared_path, read_part
from fmoe.data.sets import DATA_SETS
from fmoe.data.splits import Split, whole_digest


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


def shown(name: str, data_dir: str | Path | None = None) -> tuple[dict[str, Any], Split]:
    """Counts of a data set, for JSON, and its training images. Raises `UserError`."""
    data_set = find(name, data_dir)
    train, test = (read_part(data_set, part, data_dir) for part in ("train", "test"))
    parts = {"train": train, "val": own_val(data_set), "test": test}
    there = {part: split for part, split in parts.items() if split is not None}
    classes = len(data_set.facts.classes)
    return {
        "name": name,
        **{part: None if split is None else len(split) for part, split in parts.items()},
        **data_set.facts.plain(),
        "digest": whole_digest(train, parts["val"], test),
        "place": origin(name, data_dir),
        "per_class": {
            part: torch.bincount(split.labels, minlength=classes).tolist()
            for part, split in there.items()
        },
    }, train
