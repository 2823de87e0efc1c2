"""Data sets as uint8 tensors, a validation split cut out of train, batches on the device.

`load(name, data_dir)` gives train, val and test; `load_training` gives train and val and does not
open the test files, so that no choice can depend on them; `read` gives one part and needs no other.
Which data sets there are: `fmoe.data.sets`. Sources: a folder of published files (see
`fmoe.data.readers`), or else what `fmoe data prepare` wrote.
Augmentation is a batched tensor operation drawn for the global batch and cut by rank.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

from fmoe.data import readers
from fmoe.data import sets as data_sets
from fmoe.data.kinds import Embedded, Info, Published
from fmoe.data.sets import Name, info, known, named
from fmoe.errors import UserError, first_line
from fmoe.paths import home

__all__ = [
    "Before",
    "Data",
    "Info",
    "Name",
    "Prepared",
    "Split",
    "TrainingData",
    "check",
    "cut",
    "digest",
    "info",
    "known",
    "load",
    "load_training",
    "origin",
    "prepare",
    "prepared_path",
    "read",
    "split",
]


@dataclass(frozen=True)
class Split:
    """images uint8 [N,C,H,W], labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def pixels(self) -> Tensor:
        """Float [N,C,H,W] in [0,1], channels last in memory."""
        return self.images.float().div(255).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class TrainingData:
    """What training and selection may see."""

    name: Name
    train: Split
    val: Split
    train_digest: str
    """sha256 over the published training images and labels, whatever files they came from."""

    @property
    def info(self) -> Info:
        return info(self.name)


@dataclass(frozen=True)
class Data(TrainingData):
    test: Split
    digest: str
    """sha256 over images and labels of train and test."""

    @functools.cached_property
    def test_digest(self) -> str:
        """sha256 over images and labels of test."""
        return digest(self.test)


def digest(*splits: Split) -> str:
    sha = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels):
            sha.update(repr(tuple(array.shape)).encode())
            sha.update(array.contiguous().numpy().tobytes())
    return sha.hexdigest()


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


def cut(
    name: Name, train: Split, val_images: int | None = None, train_images: int | None = None
) -> TrainingData:
    """Cuts the fixed validation split out of train; the same images whatever the run's seed."""
    count = info(name).val_images if val_images is None else val_images
    if not 0 < count < len(train):
        raise UserError(
            f"data.val_images: {count} is not possible with {len(train)} training images"
        )
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(train)))
    left = len(train) - count
    if train_images is not None and train_images > left:
        raise UserError(f"data.train_images: {train_images}, and {left} are left to train on")
    val, rest = order[:count].sort().values, order[count:][:train_images].sort().values
    return TrainingData(name, train[rest], train[val], digest(train))


def split(
    name: Name,
    train: Split,
    test: Split,
    val_images: int | None = None,
    train_images: int | None = None,
) -> Data:
    part = cut(name, train, val_images, train_images)
    return Data(name, part.train, part.val, part.train_digest, test, digest(train, test))


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


@dataclass(frozen=True)
class Prepared:
    """A data set that was read whole. before: what was kept until now, if it is another."""

    name: Name
    train: Split
    test: Split
    digest: str
    before: Before | None = None

    @property
    def info(self) -> Info:
        return info(self.name)


@dataclass(frozen=True)
class Before:
    """Counts of images and the digest; None of a file that could not be read."""

    train: int | None = None
    test: int | None = None
    digest: str | None = None


def prepare(name: str, data_dir: str | Path | None = None) -> Prepared:
    """Reads (or downloads) a data set, checks both parts and then keeps them for `load`.

    Nothing is written and nothing replaced before all of it is known to be good.
    """
    data_set = named(name)
    match data_set:
        case Embedded():
            return _read_whole(name, None)
        case Published():
            return _prepare(data_set, data_dir)
        case _:
            assert_never(data_set)


def _prepare(data_set: Published, data_dir: str | Path | None) -> Prepared:
    name, downloads = data_set.name, data_set.downloads
    try:
        if _given(data_dir) is not None:
            return _keep(_read_whole(name, data_dir))
        with readers.downloaded(name, downloads, home() / "data" / "raw" / name) as folder:
            found = _read_whole(name, folder)
        return _keep(found)
    except OSError as error:
        raise UserError(f"{home() / 'data'}: cannot be written ({first_line(error)})") from None


def _read_whole(name: Name, data_dir: str | Path | None) -> Prepared:
    train, test = (read(name, part, data_dir) for part in readers.PARTS)
    return Prepared(name, train, test, digest(train, test))


def _keep(new: Prepared) -> Prepared:
    """Writes it unless the same is kept already.

    Raises `UserError` where a set that the recipes can train on would give way to one that is too
    small for them.
    """
    file = prepared_path(new.name)
    before = _kept(new.name) if file.exists() else None
    if before is not None and before.digest == new.digest:
        readers.remove_left(file)
        return new
    if before is not None and (before.train or 0) > new.info.val_images >= len(new.train):
        raise UserError(
            f"{new.name}: {len(new.train)} training images are too few for the "
            f"{new.info.val_images} of validation, and {file} keeps {before.train}: "
            "remove that file to keep these instead"
        )
    train, test = new.train, new.test
    readers.write_prepared(file, (train.images, train.labels), (test.images, test.labels))
    return replace(new, before=before)


def _kept(name: Name) -> Before:
    try:
        train, test = (
            check(name, part, *readers.read_prepared(prepared_path(name), named(name).kind, part))
            for part in readers.PARTS
        )
    except UserError:
        return Before()
    return Before(len(train), len(test), digest(train, test))
