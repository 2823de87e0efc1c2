"""A data set of the user's own out of a source: cut, decoded, measured, and then kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fmoe.data import own
from fmoe.data import sets as data_sets
from fmoe.data.decoding import Decoder
from fmoe.data.facts import Facts
from fmoe.data.own import NAME, Own, PartName
from fmoe.data.preparing import DOWNLOADS
from fmoe.data.scratch import in_colour
from fmoe.data.shards import Given
from fmoe.data.sources import Arrays, Columns, Source, Wanted, opened, published
from fmoe.errors import UserError, first_line
from fmoe.paths import home
from fmoe.schema import faults
from fmoe.storage.folder import Folder, sha256

CUT: dict[PartName, float] = {"test": 0.2, "val": 0.1}
"""Shares of each class's images, where a source has no parts."""
VAL_SHARE = 0.1
"""Of the training images, kept for validation where a source has none and a recipe does not say."""
Shape = tuple[int, int, int]


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
        decoded, shape = _decoded(source, wanted, work, progress)
    except OSError as error:
        raise UserError(f"{work}: cannot be written ({first_line(error)})") from None
    cut = None in decoded
    parts = (
        _cut(decoded[None], source)
        if cut
        else {part: given for part, given in decoded.items() if part is not None}
    )
    facts = measured(parts["train"], shape, source, mean, std)
    folder = Folder.at(to if to is not None else home() / "data") / name
    try:
        before = own.at(folder)
    except UserError:
        before = None  # damaged: what is made now takes its place
    train = len(parts["train"].labels)
    val = len(parts["val"].labels) if "val" in parts else max(1, round(VAL_SHARE * train))
    try:
        kept = own.write(folder, parts, facts, val_images=val, source=origin[:5000])
    except OSError as error:
        raise UserError(f"{folder.uri}: cannot be written ({first_line(error)})") from None
    for left in work.parent.glob(f"{name}-{16 * '[0-9a-f]'}"):
        shutil.rmtree(left, ignore_errors=True)
    changed = before and (before.about.digest, before.facts) != (kept.about.digest, facts)
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
) -> tuple[dict[PartName | None, Given], Shape]:
    """Of each part, and the shape [C,H,W] that all images have."""
    total, done = sum(len(given.labels) for given in source.parts.values()), 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        progress(done, total)

    decoder = Decoder(wanted, work, told)
    size: tuple[int, int] | None = None
    channels, parts = 1, {}
    for part in sorted(source.parts, key=lambda part: part != "train"):
        given = source.parts[part]
        if isinstance(given, Arrays):
            images = decoder.fitted(given)
            shape, parts[part] = images.shape[1:], Given(given.labels, images.__getitem__)
        else:
            scratch = decoder.all(str(part or "all"), given, size)
            assert scratch.shape is not None
            shape, parts[part] = scratch.shape, Given(given.labels, scratch.read)
        size, channels = size or (shape[1], shape[2]), max(channels, shape[0])
        if shape[1:] != size:
            raise UserError(
                f"{source.name}: {part} has images of {shape[1]}x{shape[2]}, and "
                f"train of {size[0]}x{size[1]}; give --size"
            )
    assert size is not None
    alike = {part: _in_colour(given, channels) for part, given in parts.items()}
    return alike, (channels, *size)


def _in_colour(given: Given, channels: int) -> Given:
    return replace(given, read=lambda rows: in_colour(given.read(rows), channels))


def _cut(whole: Given, source: Source) -> dict[PartName, Given]:
    """Train, val and test with the same share of each class, the same images every time."""
    labels = whole.labels
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
    return {part: _of(whole, np.sort(np.concatenate(rows))) for part, rows in chosen.items()}


def _of(whole: Given, chosen: np.ndarray[Any, Any]) -> Given:
    return Given(whole.labels[chosen], lambda rows: whole.read(chosen[rows]))


def measured(
    train: Given,
    shape: Shape,
    source: Source,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Facts:
    """mean, std: given, or of the training images' pixels per channel, in [0,1]."""
    channels = shape[0]
    if mean is None or std is None:  # what is given is not measured
        counts = np.zeros((channels, 256), np.int64)
        for images in train.chunks(own.AT_ONCE):
            for channel, count in enumerate(counts):
                count += np.bincount(images[:, channel].reshape(-1), minlength=256)
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
            shape=shape,
            classes=source.classes,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
        )
    except ValidationError as error:
        tree = {"shape": shape, "classes": source.classes, "mean": mean, "std": std}
        raise UserError(f"{source.name}: {faults(error, tree)}") from None


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
