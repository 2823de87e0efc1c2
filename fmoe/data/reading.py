"""A data set read: files that the user names, or what `fmoe data prepare` keeps.

`load(name, data_dir)` gives train, val and test; `load_training` gives train and val and does not
open the test files, so that no choice can depend on them; `read` gives one part and needs no other.
Which data sets there are: `fmoe.data.sets`, and those of the user's own (`fmoe.data.own`); how
files are read: `fmoe.data.readers`. What is streamed stays in its files (`fmoe.data.streamed`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never, overload

import numpy as np
import torch

from fmoe.data import own, readers
from fmoe.data import sets as data_sets
from fmoe.data.kinds import Embedded, Published
from fmoe.data.own import SET, Own, PartName
from fmoe.data.readers import Layout
from fmoe.data.sets import DataSet, named
from fmoe.data.shards import AGAIN, Given
from fmoe.data.splits import Data, Images, Split, TrainingData, cut, digest
from fmoe.data.streamed import LARGEST_HELD, Streamed
from fmoe.errors import UserError, first_line
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
    images, labels = readers.checked(f"{name} {part}", images, labels, named(name).kind)
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels, np.int64)),
    )


def prepared_path(name: str) -> Path:
    return home() / "data" / f"{name}.safetensors"


def read(name: str, part: readers.Part, data_dir: str | Path | None = None) -> Split:
    """Train or test as it is published. Raises `UserError` where it cannot be read."""
    return read_part(find(name, data_dir), part, data_dir)


def read_part(data_set: DataSet | Own, part: PartName, data_dir: str | Path | None = None) -> Split:
    """In memory. Raises `UserError`."""
    if (files := in_files(data_set, data_dir)) is not None:
        entry, split = files.about.parts[part], Streamed.of(files.shards(part)).held()
        if digest(split) != entry.digest:
            raise UserError(
                f"{files.folder.uri}/{SET}: parts.{part}.digest: is not that of its images; {AGAIN}"
            )
        return split
    assert part != "val", "a set that has one is in files"
    match data_set:
        case Embedded():
            return check(data_set.name, part, *data_set.read(part))
        case Published():
            return check(data_set.name, part, *_read_files(data_set, part, data_dir))
        case Own():
            raise AssertionError
        case _:
            assert_never(data_set)


def in_files(data_set: DataSet | Own, data_dir: str | Path | None) -> Own | None:
    """The data set as a folder of Parquet, where it is kept as one."""
    if isinstance(data_set, Own):
        return data_set
    folder = given(data_dir)
    if isinstance(data_set, Embedded) or folder is None:
        return None
    found = own.at(Folder.at(folder).reach() / data_set.name)
    facts = data_set.facts
    if found and (found.facts.shape, found.facts.classes) != (facts.shape, facts.classes):
        raise UserError(f"{found.folder.uri}/{SET}: is no {data_set.name}: other shape or classes")
    return found


def _read_files(
    data_set: Published, part: readers.Part, data_dir: str | Path | None
) -> readers.Arrays:
    layout = _layout(data_set, data_dir)
    if layout is not None:
        return layout.read(part)
    return readers.read_prepared(prepared_path(data_set.name), data_set.kind, part)


def check_there(name: str, data_dir: str | Path | None = None) -> None:
    """Raises `UserError` where the data set's files are not to be found; reads no image."""
    data_set = find(name, data_dir)
    if isinstance(data_set, Published) and in_files(data_set, data_dir) is None:
        _layout(data_set, data_dir)


def _layout(data_set: Published, data_dir: str | Path | None) -> Layout | None:
    """The published files where a folder is given, None for what `fmoe data prepare` keeps.

    Raises `UserError` where neither is there.
    """
    folder = given(data_dir)
    if folder is not None:
        if "://" in str(folder):
            raise UserError(
                f"{folder}: holds no {data_set.name}; `fmoe data prepare {data_set.name} --to "
                f"{folder}` puts it there"
            )
        return data_sets.layout(data_set, Path(folder))
    if prepared_path(data_set.name).exists():
        return None
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


@dataclass(frozen=True)
class Opened:
    """A data set, of which no image may have been read yet. files: it as a folder of Parquet;
    streamed: the same where its images stay there."""

    data_set: DataSet | Own
    data_dir: str | Path | None
    files: Own | None
    streamed: Own | None

    @classmethod
    def of(
        cls, name: str, data_dir: str | Path | None, stream: bool | None, copies: Folder | None
    ) -> Opened:
        """stream: None for what has more than `LARGEST_HELD` bytes; copies: where a set that is in
        no such folder is written to one for it."""
        data_set = find(name, data_dir)
        files = in_files(data_set, data_dir)
        if stream and files is None:
            folder = copies or Folder.at(home() / "streamed")
            files = copied(data_set, data_dir, folder)
        if stream is None and files is not None:
            stream = Streamed.of(files.shards("train")).nbytes > LARGEST_HELD
        return cls(data_set, data_dir, files, files if stream else None)

    def images(self, part: PartName) -> Images:
        if self.streamed is None:
            return read_part(self.data_set, part, self.data_dir)
        return Streamed.of(self.streamed.shards(part))

    def val(self) -> Images | None:
        """The validation split that a set has of its own, where it does."""
        return self.images("val") if self.files is not None and self.files.has("val") else None

    def digest(self, *parts: Images | None) -> str:
        """Of these: train, val and test, or without test. Of streamed ones as it was measured."""
        if self.streamed is None:
            return digest(*(part.held() for part in parts if part is not None))
        about = self.streamed.about
        return about.digest if len(parts) == 3 else about.train_digest

    def cut(
        self, train: Images, val: Images | None, val_images: int | None, train_images: int | None
    ) -> TrainingData[Images]:
        """What training and selection may see of these. Raises `UserError`."""
        return cut(
            self.data_set,
            train,
            val,
            train_digest=self.digest(train, val),
            streamed=self.streamed is not None,
            val_images=val_images,
            train_images=train_images,
        )

    def test_digest(self, test: Images) -> str:
        if self.streamed is None:
            return digest(test.held())
        return self.streamed.about.parts["test"].digest

    def counts(self, part: PartName, images: Images) -> list[int]:
        """Of each class."""
        if self.streamed is not None:
            return self.streamed.about.parts[part].per_class
        classes = len(self.data_set.facts.classes)
        return torch.bincount(images.held().labels, minlength=classes).tolist()


def copied(data_set: DataSet | Own, data_dir: str | Path | None, folder: Folder) -> Own:
    """A data set that fits into memory, as a folder of Parquet; written unless it is there."""
    train, test = (read_part(data_set, part, data_dir) for part in readers.PARTS)
    whole = digest(train, test)
    place = folder / f"{data_set.name}-{whole[:16]}"
    try:
        there = own.at(place)
    except UserError:
        there = None  # damaged: it is written again
    if there is not None and there.about.digest == whole:
        return there
    try:
        return own.write(
            place,
            {"train": Given.of(train), "test": Given.of(test)},
            data_set.facts,
            val_images=data_set.info.val_images,
            source=data_set.name,
        )
    except OSError as error:
        raise UserError(f"{place.uri}: cannot be written ({first_line(error)})") from None


@overload
def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> Data[Split]: ...
@overload
def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
    stream: bool | None,
    copies: Folder | None = None,
) -> Data[Images]: ...
def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
    stream: bool | None = False,
    copies: Folder | None = None,
) -> Data[Any]:
    """Train, val and test of a data set; see `DataConfig` for the numbers and `stream`, and
    `Opened.of` for copies.

    Raises `UserError` where it is unknown, missing or damaged.
    """
    opened = Opened.of(name, data_dir, stream, copies)
    train, val, test = opened.images("train"), opened.val(), opened.images("test")
    part = opened.cut(train, val, val_images, train_images)
    both = opened.test_digest(test), opened.digest(train, val, test)
    return Data(name, part.train, part.val, part.identity, test, *both)


@overload
def load_training(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> TrainingData[Split]: ...
@overload
def load_training(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
    stream: bool | None,
    copies: Folder | None = None,
) -> TrainingData[Images]: ...
def load_training(
    name: str,
    data_dir: str | Path | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
    stream: bool | None = False,
    copies: Folder | None = None,
) -> TrainingData[Any]:
    """As `load`, without test, whose files are not opened."""
    opened = Opened.of(name, data_dir, stream, copies)
    return opened.cut(opened.images("train"), opened.val(), val_images, train_images)
