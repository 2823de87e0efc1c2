"""CIFAR-10 as it was published: `cifar-10-python.tar.gz`, and the folder that it unpacks to."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.errors import UserError, first_line
from fmoe.readers import cifar_pickle
from fmoe.readers.arrays import MOST_IMAGES, Arrays, Kind, Part, checked, quoted
from fmoe.readers.files import content, ensure_whole, names_in, refuse_unfinished
from fmoe.readers.layout import Layout

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
BATCHES: dict[Part, list[str]] = {
    "train": [f"data_batch_{i}" for i in range(1, 6)],
    "test": ["test_batch"],
}
META = "batches.meta"
BATCH = re.compile(r"data_batch_\d+|test_batch")
KNOWN = {*BATCHES["train"], *BATCHES["test"], META}
MOST_BYTES = 128 << 20
"""Of a batch; a published one has 31 MB."""
MOST_UNPACKED = 256 << 20
MOST_MEMBERS = 64
"""Of the archive, which has 186 MB and 9 members."""


def found(kind: Kind, place: Path) -> list[Layout]:
    """The unpacked folder (torchvision leaves the archive beside it), or the archive alone."""
    if kind.name != "cifar10":
        return []
    names = names_in(place)
    refuse_unfinished(place, names, lambda base: base == ARCHIVE or bool(BATCH.fullmatch(base)))
    layouts = []
    if FOLDER in names:
        archive = place / ARCHIVE if ARCHIVE in names else None
        layouts.append(Layout(FOLDER, partial(_from_folder, place / FOLDER, archive, kind)))
    elif ARCHIVE in names:
        layouts.append(Layout(ARCHIVE, partial(_from_archive, place / ARCHIVE, kind)))
    batches = list(filter(BATCH.fullmatch, names))
    if batches:
        layouts.append(Layout(batches[0], partial(_from_folder, place, None, kind)))
    return layouts


def _from_folder(folder: Path, archive: Path | None, kind: Kind, part: Part) -> Arrays:
    names = names_in(folder)
    refuse_unfinished(folder, names, lambda base: bool(BATCH.fullmatch(base)))
    _none_left_out(folder, names)
    files: dict[str, bytes] = {name: content(folder / name, MOST_BYTES) for name in BATCHES[part]}
    if META in names:
        files[META] = content(folder / META, MOST_BYTES)
    if archive is not None:
        packed = _members(archive)
        for name in files:
            if packed.get(name) != files[name]:
                raise UserError(f"{folder / name}: not the one of {archive}; remove one of the two")
    return _batches(folder, files, kind, part)


def _from_archive(archive: Path, kind: Kind, part: Part) -> Arrays:
    files = _members(archive)
    _none_left_out(archive, list(files))
    for name in BATCHES[part]:
        if name not in files:
            raise UserError(f"{archive}: holds no {FOLDER}/{name}")
    return _batches(archive / FOLDER, files, kind, part)


def _none_left_out(source: Path, names: list[str]) -> None:
    for name in names:
        if BATCH.fullmatch(name) and name not in KNOWN:
            raise UserError(f"{source}: {name} is no batch of CIFAR-10, which has five and a test")


def _members(archive: Path) -> dict[str, bytes]:
    """The batches in an archive by name, in memory. Nothing is unpacked to disk."""
    ensure_whole(archive)
    try:
        with gzip.open(archive) as stream:
            unpacked = stream.read(MOST_UNPACKED + 1)
        if len(unpacked) > MOST_UNPACKED:
            raise ValueError(f"unpacks to more than {MOST_UNPACKED} bytes")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            return _regular(tar)
    except Exception as error:  # noqa: BLE001 - tarfile and gzip raise many kinds for damaged files
        raise UserError(f"{archive}: not CIFAR-10's archive ({first_line(error)})") from None


def _regular(tar: tarfile.TarFile) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for count, member in enumerate(tar):
        if count >= MOST_MEMBERS:
            raise ValueError(f"more than {MOST_MEMBERS} members")
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        if folder != FOLDER or not (name in KNOWN or BATCH.fullmatch(name)):
            continue
        if not member.isreg() or member.issparse() or name in files:
            raise ValueError(f"{name} is no plain file, or there twice")
        if member.size > MOST_BYTES:
            raise ValueError(f"{name} has more than {MOST_BYTES} bytes")
        taken = tar.extractfile(member)
        assert taken is not None
        files[name] = taken.read()
        if len(files[name]) != member.size:
            raise ValueError(f"{name} is cut off")
    return files


def _batches(folder: Path, files: dict[str, bytes], kind: Kind, part: Part) -> Arrays:
    if META in files:
        _same_classes(folder / META, files[META], kind)
    pieces = [_batch(folder / name, files[name], kind) for name in BATCHES[part]]
    images, labels = zip(*pieces, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _same_classes(file: Path, pickled: bytes, kind: Kind) -> None:
    try:
        names = cifar_pickle.plain(pickled).get("label_names")
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
        raise UserError(f"{file}: not CIFAR-10's names ({first_line(error)})") from None
    given = [n.decode("latin-1") if isinstance(n, bytes) else n for n in _list(names)]
    if given != list(kind.classes):
        raise UserError(
            f"{file}: label names are {quoted(given)}; {kind.name} has {', '.join(kind.classes)}"
        )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _batch(file: Path, pickled: bytes, kind: Kind) -> Arrays:
    try:
        batch = cifar_pickle.plain(pickled)
        images, labels = _images(batch), _labels(batch)
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
        raise UserError(f"{file}: not a CIFAR-10 batch ({first_line(error)})") from None
    return checked(str(file), images.reshape(-1, *kind.shape), labels, kind)


def _images(batch: dict[str, Any]) -> np.ndarray[Any, Any]:
    """`data`: [N,3072], each image's reds, greens and blues by rows."""
    given = batch.get("data")
    if not isinstance(given, cifar_pickle.Array):
        raise ValueError(f"no array `data` (has: {quoted(batch)})")
    images = given.to_numpy()
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072:
        raise ValueError(f"`data` is {images.dtype} {list(images.shape)}, not uint8 [N,3072]")
    if len(images) > MOST_IMAGES:
        raise ValueError(f"more than {MOST_IMAGES} images")
    return images


def _labels(batch: dict[str, Any]) -> np.ndarray[Any, Any]:
    """`labels`: a list of ints, or an array of integers."""
    given = batch.get("labels")
    if isinstance(given, cifar_pickle.Array):
        return given.to_numpy()
    if not isinstance(given, list):
        also = "; CIFAR-100 is not CIFAR-10" if "fine_labels" in batch else ""
        raise ValueError(f"no list `labels` (has: {quoted(batch)}){also}")
    wrong = next((label for label in given if type(label) is not int), None)
    if wrong is not None:
        raise ValueError(f"`labels` hold {type(wrong).__name__}, not integers alone")
    try:
        return np.array(given, np.int64)
    except OverflowError:
        raise ValueError("`labels` hold an integer beyond 64 bits") from None
