"""CIFAR as it was published: `cifar-10-python.tar.gz`, and the folder that it unpacks to.

A batch is a pickle of a dict; which files there are and how their keys are called is `Pickles`.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.data.readers import cifar_pickle
from fmoe.data.readers.arrays import MOST_IMAGES, Arrays, Kind, Part, checked, quoted
from fmoe.data.readers.files import content, ensure_whole, names_in, refuse_unfinished
from fmoe.data.readers.layout import Layout
from fmoe.errors import UserError, first_line

MOST_UNPACKED = 256 << 20
MOST_MEMBERS = 64
"""Of the archive, which has 186 MB and 9 members."""


@dataclass(frozen=True)
class Pickles:
    """The files of a set and the keys of their dicts.

    title: the set's name in messages; folder: of the batches, in the archive, too; train, test: the
    batches in order; alike: a regular expression of names that only a batch has (a sixth one is
    refused, not left out); meta: the file of the class names, which are its `names`; labels: the
    key of the labels in a batch; most_bytes: of a batch, of which a published one has 31 MB.
    """

    title: str
    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    alike: str
    meta: str
    labels: str
    names: str
    most_bytes: int = 128 << 20

    def batches(self, part: Part) -> tuple[str, ...]:
        return self.train if part == "train" else self.test

    def is_batch(self, name: str) -> bool:
        return re.fullmatch(self.alike, name) is not None

    @property
    def known(self) -> frozenset[str]:
        return frozenset({*self.train, *self.test, self.meta})


def found(kind: Kind, pickles: Pickles, place: Path) -> list[Layout]:
    """The unpacked folder (torchvision leaves the archive beside it), or the archive alone."""
    names = names_in(place)
    folder, archive = pickles.folder, pickles.archive
    refuse_unfinished(place, names, lambda base: base == archive or pickles.is_batch(base))
    layouts = []
    read_folder = partial(_from_folder, kind, pickles)
    if folder in names:
        beside = place / archive if archive in names else None
        layouts.append(Layout(folder, partial(read_folder, place / folder, beside)))
    elif archive in names:
        layouts.append(Layout(archive, partial(_from_archive, kind, pickles, place / archive)))
    # a folder `train` holds something else
    batches = [name for name in names if pickles.is_batch(name) and not (place / name).is_dir()]
    if batches:
        layouts.append(Layout(batches[0], partial(read_folder, place, None)))
    return layouts


def _from_folder(
    kind: Kind, pickles: Pickles, folder: Path, archive: Path | None, part: Part
) -> Arrays:
    names = names_in(folder)
    refuse_unfinished(folder, names, pickles.is_batch)
    _none_left_out(pickles, folder, names)
    wanted = [*pickles.batches(part), *({pickles.meta} & set(names))]
    files = {name: content(folder / name, pickles.most_bytes) for name in wanted}
    if archive is not None:
        packed = _members(pickles, archive)
        for name in files:
            if packed.get(name) != files[name]:
                raise UserError(f"{folder / name}: not the one of {archive}; remove one of the two")
    return _batches(kind, pickles, folder, files, part)


def _from_archive(kind: Kind, pickles: Pickles, archive: Path, part: Part) -> Arrays:
    files = _members(pickles, archive)
    _none_left_out(pickles, archive, list(files))
    for name in pickles.batches(part):
        if name not in files:
            raise UserError(f"{archive}: holds no {pickles.folder}/{name}")
    return _batches(kind, pickles, archive / pickles.folder, files, part)


def _none_left_out(pickles: Pickles, source: Path, names: list[str]) -> None:
    for name in names:
        if pickles.is_batch(name) and name not in pickles.known:
            those = ", ".join((*pickles.train, *pickles.test))
            raise UserError(
                f"{source}: {name} is no batch of {pickles.title}, which has {those} alone"
            )


def _members(pickles: Pickles, archive: Path) -> dict[str, bytes]:
    """The batches in an archive by name, in memory. Nothing is unpacked to disk."""
    ensure_whole(archive)
    try:
        with gzip.open(archive) as stream:
            unpacked = stream.read(MOST_UNPACKED + 1)
        if len(unpacked) > MOST_UNPACKED:
            raise ValueError(f"unpacks to more than {MOST_UNPACKED} bytes")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            return _regular(pickles, tar)
    except Exception as error:  # noqa: BLE001 - tarfile and gzip raise many kinds for damaged files
        raise UserError(f"{archive}: not {pickles.title}'s archive ({first_line(error)})") from None


def _regular(pickles: Pickles, tar: tarfile.TarFile) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for count, member in enumerate(tar):
        if count >= MOST_MEMBERS:
            raise ValueError(f"more than {MOST_MEMBERS} members")
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        if folder != pickles.folder or not (name in pickles.known or pickles.is_batch(name)):
            continue
        if not member.isreg() or member.issparse() or name in files:
            raise ValueError(f"{name} is no plain file, or there twice")
        if member.size > pickles.most_bytes:
            raise ValueError(f"{name} has more than {pickles.most_bytes} bytes")
        taken = tar.extractfile(member)
        assert taken is not None
        files[name] = taken.read()
        if len(files[name]) != member.size:
            raise ValueError(f"{name} is cut off")
    return files


def _batches(
    kind: Kind, pickles: Pickles, folder: Path, files: dict[str, bytes], part: Part
) -> Arrays:
    if pickles.meta in files:
        _same_classes(kind, pickles, folder / pickles.meta, files[pickles.meta])
    pieces = [_batch(kind, pickles, folder / name, files[name]) for name in pickles.batches(part)]
    images, labels = zip(*pieces, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _same_classes(kind: Kind, pickles: Pickles, file: Path, pickled: bytes) -> None:
    try:
        names = cifar_pickle.plain(pickled).get(pickles.names)
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
        raise UserError(f"{file}: not {pickles.title}'s names ({first_line(error)})") from None
    given = [n.decode("latin-1") if isinstance(n, bytes) else n for n in _list(names)]
    if given != list(kind.classes):
        raise UserError(
            f"{file}: label names are {quoted(given)}; {kind.name} has {quoted(kind.classes)}"
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _batch(kind: Kind, pickles: Pickles, file: Path, pickled: bytes) -> Arrays:
    try:
        batch = cifar_pickle.plain(pickled)
        images, labels = _images(batch, prod(kind.shape)), _labels(batch, pickles.labels)
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
        raise UserError(f"{file}: not a {pickles.title} batch ({first_line(error)})") from None
    return checked(str(file), images.reshape(-1, *kind.shape), labels, kind)


def _images(batch: dict[str, Any], values: int) -> np.ndarray[Any, Any]:
    """`data`: [N,values], each image's reds, greens and blues by rows."""
    given = batch.get("data")
    if not isinstance(given, cifar_pickle.Array):
        raise ValueError(f"no array `data` (has: {quoted(batch)})")
    images = given.to_numpy()
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != values:
        raise ValueError(f"`data` is {images.dtype} {list(images.shape)}, not uint8 [N,{values}]")
    if len(images) > MOST_IMAGES:
        raise ValueError(f"more than {MOST_IMAGES} images")
    return images


def _labels(batch: dict[str, Any], key: str) -> np.ndarray[Any, Any]:
    """A list of ints, or an array of integers."""
    given = batch.get(key)
    if isinstance(given, cifar_pickle.Array):
        return given.to_numpy()
    if not isinstance(given, list):
        raise ValueError(f"no list `{key}` (has: {quoted(batch)})")
    wrong = next((label for label in given if type(label) is not int), None)
    if wrong is not None:
        raise ValueError(f"`{key}` hold {type(wrong).__name__}, not integers alone")
    try:
        return np.array(given, np.int64)
    except OverflowError:
        raise ValueError(f"`{key}` hold an integer beyond 64 bits") from None
