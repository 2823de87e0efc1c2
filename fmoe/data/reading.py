"""A data set read: files that the user names, or what `fmoe data prepare` keeps.

`load(name, data_dir)` gives train, val and test; `load_training` gives train and val and does not
open the test files, so that no choice can depend on them; `read` gives one part and needs no other.
Which data sets there are: `fmoe.data.sets`; how their files are read: `fmoe.data.readers`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch

from fmoe.data import readers
from fmoe.data import sets as data_sets
from fmoe.data.kinds import Embedded, Published
from fmoe.data.sets import Name, known, named
from fmoe.data.splits import Data, Split, TrainingData, cut, split
from fmoe.errors import UserError
from fmoe.paths import home


def check(name: Name, part: str, images: Any, labels: Any) -> Split:
    """Arrays of a reader as a `Split`, or `UserError` where they are not this data set."""
    images, labels = readers.checked(f"{name} {part}", images, labels, named(name).kind)
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels, np.int64)),
    )


def prepared_path(name: Name) -> Path:
    return home() / "data" / f"{name}.safetensors"


def read(name: str, part: readers.Part, data_dir: str | Path | None = None) -> Split:
    """Train or test as it is published. Raises `UserError` where it cannot be read."""
    data_set = named(name)
    match data_set:
        case Embedded():
            arrays = data_set.read(part)
        case Published():
            arrays = _read_files(data_set, part, data_dir)
        case _:
            assert_never(data_set)
    return check(name, part, *arrays)


def _read_files(
    data_set: Published, part: readers.Part, data_dir: str | Path | None
) -> readers.Arrays:
    folder, kept = _given(data_dir), prepared_path(data_set.name)
    if folder is not None:
        return data_sets.read_folder(data_set, Path(folder), part)
    if kept.exists():
        return readers.read_prepared(kept, data_set.kind, part)
    prepare = f"run `fmoe data prepare {data_set.name}` (downloads it), or "
    raise UserError(
        f"{data_set.name} is not here: {prepare if data_set.downloads else ''}give --data-dir "
        "(or FMOE_DATA_DIR)"
    )


def _given(data_dir: str | Path | None) -> str | Path | None:
    """The folder that the user names."""
    return data_dir or os.environ.get("FMOE_DATA_DIR") or None


def origin(name: str, data_dir: str | Path | None = None) -> str:
    """Where the data set is read from, for messages."""
    data_set = named(name)
    match data_set:
        case Embedded():
            return data_set.origin
        case Published():
            return str(Path(_given(data_dir) or prepared_path(name)).resolve())
        case _:
            assert_never(data_set)


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> Data:
    """Train, val and test of one of `fmoe.data.sets`; see `DataConfig` for the numbers.

    Raises `UserError` where the data set is unknown, missing or damaged.
    """
    train, test = (read(name, part, data_dir) for part in readers.PARTS)
    return split(known(name), train, test, val_images, train_images)


def load_training(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> TrainingData:
    """As `load`, without test, whose files are not opened."""
    return cut(known(name), read(name, "train", data_dir), val_images, train_images)
