"""IDX as MNIST and its likes are published: `train-images-idx3-ubyte`, plain or as `.gz`."""

from __future__ import annotations

import gzip
import struct
import zlib
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.data.readers.arrays import MOST_IMAGES, Arrays, Part
from fmoe.data.readers.files import content, names_in, refuse_unfinished
from fmoe.data.readers.layout import Layout
from fmoe.errors import UserError, first_line

PREFIX: dict[Part, str] = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
ENDS = ("", ".gz")
FILES = frozenset(
    f"{prefix}-{kind}{end}"
    for prefix in PREFIX.values()
    for kind in (IMAGES, LABELS)
    for end in ENDS
)
RAW = "raw"
UNSIGNED_BYTE = 8
"""The type of the values, in the third byte of a file."""
MOST_BYTES = 1 << 30


def found(place: Path, folder: str | None = None) -> list[Layout]:
    """Files in `place`, in its `raw`, or in torchvision's `folder`/raw."""
    inner = [place, place / RAW]
    if folder is not None:
        inner += [place / folder, place / folder / RAW]
    layouts = []
    for each in inner:
        names = names_in(each)
        refuse_unfinished(each, names, FILES.__contains__)
        if FILES & set(names):
            layouts.append(Layout(str((each / IMAGES).relative_to(place)), partial(_read, each)))
    return layouts


def _read(folder: Path, part: Part) -> Arrays:
    images, labels = (_array(folder, f"{PREFIX[part]}-{kind}") for kind in (IMAGES, LABELS))
    if images.ndim != 3 or labels.ndim != 1:
        raise UserError(f"{folder}: {PREFIX[part]}: images [N,H,W] and labels [N] are expected")
    return images[:, None], labels


def _array(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Of the plain file, which torchvision leaves beside the packed one, or of that."""
    there = [folder / f"{name}{end}" for end in ENDS if (folder / f"{name}{end}").exists()]
    if not there:
        raise UserError(f"{folder}: no {name} (or {name}.gz)")
    file = there[0]
    data = content(file, MOST_BYTES)
    try:
        if file.suffix == ".gz":
            inflater = zlib.decompressobj(wbits=31)
            data = inflater.decompress(data, MOST_BYTES)
            if not inflater.eof:
                raise ValueError("cut off, or more than is read")
        return _values(data)
    except (ValueError, struct.error, zlib.error, gzip.BadGzipFile, MemoryError) as error:
        raise UserError(f"{file}: not a readable IDX file ({first_line(error)})") from None


def _values(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    nothing, kind, dimensions = struct.unpack_from(">HBB", data)
    if nothing or kind != UNSIGNED_BYTE or not 1 <= dimensions <= 4:
        raise ValueError("its first bytes are not those of unsigned bytes")
    sides = struct.unpack_from(f">{dimensions}I", data, 4)
    start = 4 + 4 * dimensions
    if sides[0] > MOST_IMAGES or len(data) - start != prod(sides):
        raise ValueError(f"{len(data) - start} values, and its header says {list(sides)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(sides).copy()
