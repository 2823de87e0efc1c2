"""A data set of the user's own out of a source: cut, decoded, measured, and then kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from fmoe.data import own
from fmoe.data import sets as data_sets
from fmoe.data.decoding import Decoder, Image
from fmoe.data.facts import Facts
from fmoe.data.own import NAME, Own, PartName
from fmoe.data.preparing import DOWNLOADS
from fmoe.data.sources import Arrays, Columns, Source, Wanted, opened, published
from fmoe.data.splits import Split, digest
from fmoe.errors import UserError, first_line
from fmoe.paths import home
from fmoe.schema import faults
from fmoe.storage.folder import Folder, sha256

CUT: dict[PartName, float] = {"test": 0.2, "val": 0.1}
"""Shares of each class's images, where a source has no parts."""
VAL_SHARE = 0.1
"""Of the training images, kept for validation where a source has none and a recipe does not say."""


@dataclass(frozen=True)
class Made:
    """A set that was made. before: what was kept under its name until now, if it is another."""

    own: Own
    before: Own | None
    notes: tuple[str, ...]


def make(
    place: str | Path,
    name: str,
    data_dir: str | Path | None = None,
    *,
    wanted: Wanted | None = None,
    columns: Columns | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    to: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Made:
    """Reads all of it, measures it and keeps it as the data set `name`.

    place: a path as `fmoe.data.sources.opened` takes it, or the name of a data set of fmoe's, which
    is read from data_dir or what is kept of it; mean, std: a value a channel, measured on
    the training images where they are not given; to: a folder or URI, by default fmoe's own;
    progress: images done and all of them. Nothing is replaced before all of it is known to be good.

    Raises `UserError`, which names the file or option.
    """
    check_name(name)
    wanted = wanted or Wanted()
    source, origin = _source(str(place), name, data_dir, columns or Columns())
    if to == "":
        raise UserError("--to: names no folder")
    work = home() / "data" / ".preparing" / f"{name}-{_version(source, wanted)}"
    try:
        parts = _decoded(source, wanted, work, progress)
    except OSError as error:
        raise UserError(f"{work}: cannot be written ({first_line(error)})") from None
    parts, cut = (_cut(parts[None], source), True) if None in parts else (parts, False)
    facts = measured(parts["train"], source, mean, std)
    splits = {part: as_split(*arrays) for part, arrays in parts.items() if part is not None}
    folder = Folder.at(to if to is not None else home() / "data") / name
    whole = digest(*(splits[part] for part in own.PART_NAMES if part in splits))
    try:
        before = own.at(folder)
    except UserError:
        before = None  # damaged: what is made now takes its place
    train = len(splits["train"])
    val = len(splits["val"]) if "val" in splits else max(1, round(VAL_SHARE * train))
    try:
        kept = own.write(
            folder,
            {part: (split.images, split.labels) for part, split in splits.items()},
            facts,
            val_images=val,
            digest=whole,
            source=origin[:5000],
        )
    except OSError as error:
        raise UserError(f"{folder.uri}: cannot be written ({first_line(error)})") from None
    for left in work.parent.glob(f"{name}-{16 * '[0-9a-f]'}"):
        shutil.rmtree(left, ignore_errors=True)
    changed = before is not None and (before.about.digest, before.facts) != (whole, facts)
    return Made(kept, before if changed else None, tuple(_notes(kept, cut)))


def _source(
    place: str, name: str, data_dir: str | Path | None, columns: Columns
) -> tuple[Source, str]:
    """And where it is, for people."""
    try:
        path = Path(place).expanduser()
        there = place != "" and path.exists()
    except (RuntimeError, OSError) as error:  # ~nosuchuser; a name that is too long
        raise UserError(f"{place}: no such file or folder ({first_line(error)})") from None
    if there and place in data_sets.names():
        raise UserError(f"{place}: is a data set of fmoe's, and a path: give ./{place} for that")
    if there:
        return opened(path, columns), str(path.resolve())
    if place in data_sets.names() or (place != name and own.find(place, data_dir)):
        return published.named(place, data_dir), place
    raise UserError(f"{place!r}: no such file or folder, and no data set of that name")


def check_name(name: str) -> None:
    """Raises `UserError` for what cannot be a name of the user's own."""
    if name in (*data_sets.names(), DOWNLOADS):
        raise UserError(f"--name {name}: is fmoe's own; give another")
    if not NAME.fullmatch(name) or name.endswith(".safetensors"):
        raise UserError(
            f"--name {name}: small letters, digits, '-', '_' and '.' only, 64 at most, the first a "
            "letter or digit"
        )


def _version(source: Source, wanted: Wanted) -> str:
    """What an interrupted try must share for its images to be taken."""
    parts = [
        (part, given.version)
        for part, given in source.parts.items()
        if not isinstance(given, Arrays)
    ]
    return sha256(repr((parts, wanted)).encode())[:16]


def _decoded(
    source: Source, wanted: Wanted, work: Path, progress: Callable[[int, int], None]
) -> dict[PartName | None, tuple[Image, np.ndarray[Any, Any]]]:
    """Images uint8 [N,C,H,W] of one shape, and labels, of each part."""
    total, done = sum(len(given.labels) for given in source.parts.values()), 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    decoder = Decoder(wanted, Folder.at(work), told)
    size: tuple[int, int] | None = None
    parts: dict[PartName | None, tuple[Image, np.ndarray[Any, Any]]] = {}
    for part in sorted(source.parts, key=lambda part: part != "train"):
        given = source.parts[part]
        if isinstance(given, Arrays):
            images = decoder.fitted(given)
        else:
            images = decoder.all(str(part or "all"), given, size)
        size = size or (images.shape[2], images.shape[3])
        if images.shape[2:] != size:
            raise UserError(
                f"{source.name}: {part} has images of {images.shape[2]}x{images.shape[3]}, and "
                f"train of {size[0]}x{size[1]}; give --size"
            )
        parts[part] = images, given.labels
    channels = max(images.shape[1] for images, _ in parts.values())
    return {
        part: (images if images.shape[1] == channels else np.repeat(images, channels, 1), labels)
        for part, (images, labels) in parts.items()
    }


def _cut(
    whole: tuple[Image, np.ndarray[Any, Any]], source: Source
) -> dict[PartName | None, tuple[Image, np.ndarray[Any, Any]]]:
    """Train, val and test with the same share of each class, the same images every time."""
    images, labels = whole
    rng = np.random.RandomState(0)
    chosen: dict[PartName, list[np.ndarray[Any, Any]]] = {"train": [], "val": [], "test": []}
    for label, name in enumerate(source.classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < len(chosen):
            raise UserError(
                f"{source.name}: class {name!r} has {len(rows)} images; to be cut into train, val "
                "and test it needs at least 3"
            )
        rows = rng.permutation(rows)
        for part, share in CUT.items():
            count = max(1, round(share * len(labels[labels == label])))
            chosen[part].append(rows[:count])
            rows = rows[count:]
        chosen["train"].append(rows)
    parts = {part: np.sort(np.concatenate(rows)) for part, rows in chosen.items()}
    return {part: (images[rows], labels[rows]) for part, rows in parts.items()}


def measured(
    train: tuple[Image, np.ndarray[Any, Any]],
    source: Source,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Facts:
    """mean, std: given, or of the training images' pixels per channel, in [0,1]."""
    images = train[0]
    channels, height, width = images.shape[1:]
    if mean is None or std is None:  # what is given is not measured
        counts = [
            np.bincount(images[:, channel].reshape(-1), minlength=256)
            for channel in range(channels)
        ]
        values = np.arange(256) / 255
        means = [float(count @ values / count.sum()) for count in counts]
        stds = [
            float(np.sqrt(count @ (values - center) ** 2 / count.sum()))
            for count, center in zip(counts, means, strict=True)
        ]
        if std is None and min(stds) < 1e-4:
            raise UserError(f"{source.name}: all training images have one value in a channel")
        mean, std = means if mean is None else mean, stds if std is None else std
    try:
        return Facts(
            shape=(channels, height, width),
            classes=source.classes,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
        )
    except ValidationError as error:
        tree = {"shape": images.shape[1:], "classes": source.classes, "mean": mean, "std": std}
        raise UserError(f"{source.name}: {faults(error, tree)}") from None


def as_split(images: Image, labels: np.ndarray[Any, Any]) -> Split:
    return Split(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels)),
    )


def _notes(kept: Own, cut: bool) -> list[str]:
    """What the user should know of the set, and is no error."""
    notes = []
    if cut:
        notes.append("no parts in the source: cut by class into 70% train, 10% val, 20% test")
    for part, entry in kept.about.parts.items():
        lacking = [
            name
            for name, count in zip(kept.about.classes, entry.per_class, strict=True)
            if not count
        ]
        if lacking:
            notes.append(f"{part}: no image of {len(lacking)} classes, first {lacking[0]!r}")
    counts = kept.about.parts["train"].per_class
    if max(counts) > IMBALANCE * min(counts):
        names = kept.about.classes
        notes.append(
            f"classes are unlike in size: {max(counts)} training images of "
            f"{names[counts.index(max(counts))]!r}, {min(counts)} of "
            f"{names[counts.index(min(counts))]!r}"
        )
    return notes


IMBALANCE = 2
"""Times the smallest class from which on the largest is told."""
