"""A data set read whole and checked, then kept for later: `fmoe data prepare`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

from fmoe.data import own, readers
from fmoe.data.kinds import Embedded, Info, Published
from fmoe.data.reading import check, given, prepared_path, read_part
from fmoe.data.sets import DataSet, info, named
from fmoe.data.shards import Given
from fmoe.data.splits import Split, digest
from fmoe.errors import UserError, first_line
from fmoe.paths import home
from fmoe.storage.folder import Folder

DOWNLOADS = "raw"
"""Where published files are kept, beside the sets."""


@dataclass(frozen=True)
class Prepared:
    """A data set that was read whole. before: what was kept until now, if it is another."""

    name: str
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


def prepare(
    name: str, data_dir: str | Path | None = None, to: str | Path | None = None
) -> Prepared:
    """Reads (or downloads) a data set of fmoe's, checks both parts and then keeps them for `load`.

    to: a folder or URI to keep them in, for `--data-dir` there. Nothing is written and nothing
    replaced before all of it is known to be good.
    """
    data_set = named(name)
    match data_set:
        case Embedded():
            whole = _read_whole(data_set, None)
            return whole if to is None else _put(data_set, whole, to)
        case Published():
            return _prepare(data_set, data_dir, to)
        case _:
            assert_never(data_set)


def _prepare(data_set: Published, data_dir: str | Path | None, to: str | Path | None) -> Prepared:
    name, downloads = data_set.name, data_set.downloads

    def keep(whole: Prepared) -> Prepared:
        return _keep(whole) if to is None else _put(data_set, whole, to)

    try:
        if given(data_dir) is not None:
            return keep(_read_whole(data_set, data_dir))
        if to is not None and prepared_path(name).exists():
            return keep(_read_whole(data_set, None))
        with readers.downloaded(name, downloads, home() / "data" / DOWNLOADS / name) as folder:
            whole = _read_whole(data_set, folder)
        return keep(whole)
    except OSError as error:
        raise UserError(
            f"{to or home() / 'data'}: cannot be written ({first_line(error)})"
        ) from None


def _read_whole(data_set: DataSet, data_dir: str | Path | None) -> Prepared:
    train, test = (read_part(data_set, part, data_dir) for part in readers.PARTS)
    return Prepared(data_set.name, train, test, digest(train, test))


def _put(data_set: DataSet, whole: Prepared, to: str | Path) -> Prepared:
    """In the form of a set of the user's own, which any place can hold."""
    own.write(
        Folder.at(to) / data_set.name,
        {"train": Given.of(whole.train), "test": Given.of(whole.test)},
        data_set.facts,
        val_images=data_set.info.val_images,
        source=data_set.name,
    )
    return whole


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


def _kept(name: str) -> Before:
    try:
        train, test = (
            check(name, part, *readers.read_prepared(prepared_path(name), named(name).kind, part))
            for part in readers.PARTS
        )
    except UserError:
        return Before()
    return Before(len(train), len(test), digest(train, test))
