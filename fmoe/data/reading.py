"""A data set read: files that the user names, or what `fmoe data prepare` keeps.

`load(name, data_dir)` gives train, val and test; `load_training` gives train and val and does not
open the test files, so that no choice can depend on them; `read` gives one part and needs no other.
Which data sets there are: `fmoe.data.sets`, and those of the user's own (`fmoe.data.own`); how
files are read: `fmoe.data.readers`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch

from fmoe.data import own, readers
from fmoe.data import sets as data_sets
from fmoe.data.kinds import Embedded, Published
from fmoe.data.own import Own
from fmoe.data.sets import DataSet, named
from fmoe.data.splits import Data, Split, TrainingData, cut, whole_digest
from fmoe.errors import UserError
from fmoe.paths import home
from fmoe.storage.folder import Folder


def find(name: str, data_dir: str | Path | None = None) -> DataSet | Own:
    """The data set of this name: fmoe's, or one that was prepared under it.

    Raises `UserError`, which lists those there are, for an unknown name.
    """
    if name in data_sets.names():
        return named(name)
    if (found := own.find(name, data_dir)) is not None:
        return found
    there = [*data_sets.names(), *(each.name for each in own.listed(data_dir))]
    raise UserError(f"unknown data set {name!r} (there are: {', '.join(there)})")


def check(name: str, part: str, images: Any, labels: Any) -> Split:
    """Arrays of a reader as a `Split`, or `UserError` where they are not this data set."""
    return as_split(*readers.checked(f"{name} {part}", images, labels, named(name).kind))


def as_split(images: Any, labels: Any) -> Split:
    """Checked arrays as tensors."""
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels, np.int64)),
    )


def prepared_path(name: str) -> Path:
    return home() / "data" / f"{name}.safetensors"


def read(name: str, part: readers.Part, data_dir: str | Path | None = None) -> Split:
    """Train or test as it is published. Raises `UserError` where it cannot be read."""
    return read_part(find(name, data_dir), part, data_dir)


def read_part(
    data_set: DataSet | Own, part: readers.Part, data_dir: str | Path | None = None
) -> Split:
    match data_set:
        case Own():
            return as_split(*data_set.read(part))
        case Embedded():
            arrays = data_set.read(part)
        case Published():
            arrays = _read_files(data_set, part, data_dir)
        case _:
            assert_never(data_set)
    return check(data_set.name, part, *arrays)


def _read_files(
    data_set: Published, part: readers.Part, data_dir: str | Path | None
) -> readers.Arrays:
    folder, kept = given(data_dir), prepared_path(data_set.name)
    if folder is not None:
        if (prepared := own.at(Folder.at(folder).reach() / data_set.name)) is not None:
            return prepared.read(part)
        if "://" in str(folder):
            raise UserError(
                f"{folder}: holds no {data_set.name}; `fmoe data prepare {data_set.name} --to "
                f"{folder}` puts it there"
            )
        return data_sets.read_folder(data_set, Path(folder), part)
    if kept.exists():
        return readers.read_prepared(kept, data_set.kind, part)
    prepare = f"run `fmoe data prepare {data_set.name}` (downloads it), or "
    raise UserError(
        f"{data_set.name} is not here: {prepare if data_set.downloads else ''}give --data-dir "
        "(or FMOE_DATA_DIR)"
    )


def given(data_dir: str | Path | None) -> str | Path | None:
    """The folder that the user names."""
    return data_dir or os.environ.get("FMOE_DATA_DIR") or None


def origin(name: str, data_dir: str | Path | None = None) -> str:
    """Where the data set is read from, for messages."""
    data_set = find(name, data_dir)
    match data_set:
        case Embedded() | Own():
            return data_set.origin
        case Published():
            folder = given(data_dir) or prepared_path(name)
            return str(folder if "://" in str(folder) else Path(folder).resolve())
        case _:
            assert_never(data_set)


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> Data:
    """Train, val and test of a data set; see `DataConfig` for the numbers.

    Raises `UserError` where it is unknown, missing or damaged.
    """
    data_set = find(name, data_dir)
    train, test = (read_part(data_set, part, data_dir) for part in readers.PARTS)
    val = own_val(data_set)
    part = cut(data_set, train, val, val_images=val_images, train_images=train_images)
    whole = whole_digest(train, val, test)
    return Data(name, part.train, part.val, part.identity, test, whole)


def load_training(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> TrainingData:
    """As `load`, without test, whose files are not opened."""
    data_set = find(name, data_dir)
    train = read_part(data_set, "train", data_dir)
    return cut(data_set, train, own_val(data_set), val_images=val_images, train_images=train_images)


def own_val(data_set: DataSet | Own) -> Split | None:
    """The validation split that a set has of its own, where it does."""
    if not isinstance(data_set, Own) or not data_set.has("val"):
        return None
    return as_split(*data_set.read("val"))
