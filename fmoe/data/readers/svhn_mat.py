"""SVHN as it was published: `{train,test}_32x32.mat`, MATLAB 5.

X uint8 [32,32,3,N]; y [N,1] in 1..10, of which 10 is the digit 0. MATLAB calls y `double` and
stores bytes; what is stored counts. A file's elements are unpacked here, to a limit, before SciPy
sees them, and what it declares is looked at before it is loaded.
"""

from __future__ import annotations

import io
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fmoe.data.readers.arrays import MOST_IMAGES, PARTS, Arrays, Kind, Part, checked
from fmoe.data.readers.files import content, names_in, refuse_unfinished
from fmoe.data.readers.layout import Layout
from fmoe.errors import UserError, first_line

HEADER = 128
COMPRESSED = 15
MOST_BYTES = 768 << 20
"""Unpacked; the published train has 225 MB."""
MOST_ELEMENTS = 64
NUMBERS = {"double", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
HDF5 = b"\x89HDF"


def found(kind: Kind, place: Path) -> list[Layout]:
    names, published = names_in(place), [f"{part}_32x32.mat" for part in PARTS]
    refuse_unfinished(place, names, lambda base: base in published)
    there = [name for name in published if name in names]
    return [Layout(there[0], partial(_read, place, kind))] if there else []


def _read(place: Path, kind: Kind, part: Part) -> Arrays:
    file = place / f"{part}_32x32.mat"
    packed = content(file, MOST_BYTES)
    try:
        images, labels = _arrays(_unpacked(packed))
    except Exception as error:  # noqa: BLE001 - scipy raises many kinds for damaged files
        raise UserError(f"{file}: not an SVHN file ({first_line(error)})") from None
    if len(labels) and (labels.min() < 1 or labels.max() > 10):
        raise UserError(
            f"{file}: labels must lie in 1..10 (10 is the digit 0), "
            f"not {labels.min()}..{labels.max()}"
        )
    return checked(str(file), images, labels % 10, kind)


def _unpacked(packed: bytes) -> bytes:
    """The same file without compression."""
    if packed[:4] == HDF5 or packed[:10] == b"MATLAB 7.3":
        raise ValueError("MATLAB 7.3, which is HDF5; save it with -v7")
    if packed[126:128] not in (b"IM", b"MI"):
        raise ValueError("not MATLAB 5")
    order = "<" if packed[126:128] == b"IM" else ">"
    out, position = [packed[:HEADER]], HEADER
    left = MOST_BYTES
    while position < len(packed):
        if len(out) > MOST_ELEMENTS:
            raise ValueError(f"more than {MOST_ELEMENTS} variables")
        kind, size = struct.unpack_from(f"{order}II", packed, position)
        end = position + 8 + size
        if end > len(packed):
            raise ValueError("cut off")
        if kind == COMPRESSED:
            out.append(_inflated(packed[position + 8 : end], left))
        else:
            out.append(packed[position:end])
        left -= len(out[-1])
        position = end
    return b"".join(out)


def _inflated(packed: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj()
    unpacked = inflater.decompress(packed, max(most, 1))
    if inflater.unconsumed_tail:
        raise ValueError(f"unpacks to more than {MOST_BYTES} bytes")
    if not inflater.eof:
        raise ValueError("cut off")
    if unpacked[:4] in (struct.pack("<I", COMPRESSED), struct.pack(">I", COMPRESSED)):
        raise ValueError("packed twice")
    return unpacked


def _arrays(unpacked: bytes) -> Arrays:
    from scipy.io import loadmat, whosmat

    declared: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape, kind in whosmat(io.BytesIO(unpacked)):
        if name in declared:
            raise ValueError(f"a variable twice, {name[:20]!r}")
        declared[name] = (shape, kind)
    if not {"X", "y"} <= set(declared):
        raise ValueError("no X or no y")
    shape, kind = declared["X"]
    if kind != "uint8" or len(shape) != 4 or shape[:3] != (32, 32, 3) or shape[3] > MOST_IMAGES:
        raise ValueError(f"X is {kind} {list(shape)[:8]}, not uint8 [32,32,3,N]")
    count, (shape, kind) = shape[3], declared["y"]
    if kind not in NUMBERS or sorted(shape) != sorted((1, count)):
        raise ValueError(f"y is {kind} {list(shape)[:8]}, not integers [{count},1]")
    mat = loadmat(io.BytesIO(unpacked), variable_names=["X", "y"])
    X, y = _stored(mat["X"], "u"), _stored(mat["y"], "iu")
    return X.transpose(3, 2, 0, 1), y.reshape(-1)


def _stored(array: Any, kinds: str) -> np.ndarray[Any, Any]:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds:
        raise ValueError(f"stored as {getattr(array, 'dtype', type(array).__name__)}, not integers")
    return array
