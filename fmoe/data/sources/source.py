"""What a source gives: classes, and parts of pictures that are still encoded, or of arrays."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fmoe.data.own import PartName
from fmoe.errors import UserError

MOST_CLASSES = 1000
Labels = np.ndarray[Any, np.dtype[np.int64]]
Encoded = tuple[str, bytes]
"""Where a picture is, for messages, and its file's bytes."""


@dataclass(frozen=True)
class Columns:
    """Of Parquet: which hold pictures and labels; None where that is to be seen."""

    image: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Wanted:
    """size: (height, width) to resize to; channels: 1 or 3. None: as the images have."""

    size: tuple[int, int] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels: {self.channels}; expected 1 (grey) or 3 (colour)")


@dataclass(frozen=True)
class Pictures:
    """Encoded ones. labels: int64 [N]; read: those from the n-th on, in order; version: what
    changes where one of them does; None where that cannot be told without reading them."""

    labels: Labels
    read: Callable[[int], Iterator[Encoded]] = field(repr=False)
    version: str | None


@dataclass(frozen=True)
class Arrays:
    """images: uint8 [N,C,H,W], C is 1 or 3; labels: int64 [N]; source: for messages."""

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: Labels
    source: str

    def __post_init__(self) -> None:
        """Raises `UserError` for what are no images with a label each."""
        if self.images.ndim != 4 or 0 in self.images.shape[1:]:
            raise UserError(f"{self.source}: images of shape {self.images.shape}, without a pixel")
        if len(self.images) != len(self.labels):
            raise UserError(
                f"{self.source}: {len(self.images)} images and {len(self.labels)} labels"
            )


@dataclass(frozen=True)
class Source:
    """parts: `train` and `test`, and `val` or not; or `None` alone: what is not cut yet."""

    name: str
    classes: tuple[str, ...]
    parts: Mapping[PartName | None, Pictures | Arrays]

    def __post_init__(self) -> None:
        """Raises `UserError` for what cannot be learned or judged."""
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            some = ", ".join(map(repr, self.classes[:3])) or "none"
            raise UserError(
                f"{self.name}: {len(self.classes)} classes ({some}); there must be 2 to "
                f"{MOST_CLASSES}"
            )
        if "" in self.classes:
            raise UserError(f"{self.name}: class {self.classes.index('')} has no name")
        alike = Counter(unicodedata.normalize("NFC", name) for name in self.classes)
        if twice := [name for name, count in alike.items() if count > 1]:
            raise UserError(f"{self.name}: two classes are named {twice[0]!r}")
        if None not in self.parts:
            for needed in ("train", "test"):
                if needed not in self.parts:
                    raise UserError(
                        f"{self.name}: has {' and '.join(map(str, self.parts))} and no {needed}: "
                        "name a part so, or give all images as one to have them cut"
                    )
        learned = self.parts.get("train") or self.parts[None]
        counts = np.bincount(learned.labels, minlength=len(self.classes))
        if len(counts) > len(self.classes):
            raise UserError(
                f"{self.name}: labels must lie in 0..{len(self.classes) - 1}, not "
                f"{learned.labels.min()}..{learned.labels.max()}"
            )
        if (empty := np.flatnonzero(counts == 0)).size:
            raise UserError(
                f"{self.name}: no training image of class {self.classes[empty[0]]!r}"
                + (f" and {empty.size - 1} more" if empty.size > 1 else "")
            )
        for part, given in self.parts.items():
            if not len(given.labels):
                raise UserError(f"{self.name}: {part} holds no images")
            if given.labels.max() >= len(self.classes) or given.labels.min() < 0:
                raise UserError(
                    f"{self.name}: {part}: labels must lie in 0..{len(self.classes) - 1}, not "
                    f"{given.labels.min()}..{given.labels.max()}"
                )
