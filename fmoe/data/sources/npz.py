"""NumPy's `.npz`: arrays of images and labels by the usual names, without any pickle."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fmoe.data.own import PartName
from fmoe.data.readers.files import ensure_whole
from fmoe.data.sources.labels import numbered
from fmoe.data.sources.source import Arrays, Source
from fmoe.errors import UserError, first_line

NAMES: dict[PartName | None, tuple[tuple[str, str], ...]] = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "val": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
    None: (("images", "labels"), ("x", "y")),
}
"""Of images and labels: MedMNIST's, Keras', and one part that is not cut yet."""
CLASSES = "classes"
"""Names of the classes, label 0 first, where there are any."""
EXPECTED = "expected train_images, train_labels, test_images, test_labels; or images and labels"


def source(file: Path) -> Source:
    """Raises `UserError` with the file's name and the array's."""
    ensure_whole(file)
    try:
        _fits_memory(file)
        with np.load(file, allow_pickle=False) as arrays:
            given = {name: arrays[name] for name in arrays.files}
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - NumPy raises many kinds for damaged bytes
        raise UserError(f"{file}: not a readable .npz ({first_line(error)})") from None
    if odd := [name for name, array in given.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{file}: {odd[0][:100]}: is no array")
    names = given.pop(CLASSES, None)
    found: dict[PartName | None, tuple[str, str]] = {}
    for part, pairs in NAMES.items():
        here = [pair for pair in pairs if given.keys() & set(pair)]
        if len(here) > 1:
            raise UserError(f"{file}: holds {part or 'the images'} twice, {here[0]} and {here[1]}")
        for pair in here:
            if missing := sorted(set(pair) - given.keys()):
                raise UserError(f"{file}: no array {missing[0]} (has: {', '.join(given)})")
            found[part] = pair
    if not found or (None in found and len(found) > 1):
        raise UserError(f"{file}: has {', '.join(given) or 'no arrays'}; {EXPECTED}")
    texts = {part: _labels(file, label, given[label]) for part, (_, label) in found.items()}
    classes, labels = numbered(str(file), texts, _class_names(file, names))
    parts: dict[PartName | None, Any] = {
        part: Arrays(_images(file, image, given[image], len(labels[part])), labels[part], str(file))
        for part, (image, _) in found.items()
    }
    return Source(str(file), classes, parts)


def _fits_memory(file: Path) -> None:
    with zipfile.ZipFile(file) as opened:
        size = sum(entry.file_size for entry in opened.infolist())
    if 2 * size > psutil.virtual_memory().available:
        raise UserError(f"{file}: {size / 1e9:.1f} GB unpacked, more than there is memory for")


def _labels(file: Path, name: str, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # MedMNIST's
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UserError(
            f"{file}: {name}: labels are {labels.dtype} of shape {labels.shape}; expected integers "
            "or text [N]"
        )
    return labels


def _class_names(file: Path, names: np.ndarray[Any, Any] | None) -> list[str] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{file}: {CLASSES}: expected text [K]")
    return [str(name) for name in names]


def _images(
    file: Path, name: str, images: np.ndarray[Any, Any], labels: int
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [N,C,H,W]."""
    if images.ndim == 0:
        raise UserError(f"{file}: {name}: is no array of images")
    if images.dtype.kind == "u" and images.dtype.itemsize == 2:  # of either byte order
        images = (images >> 8).astype(np.uint8)
    if images.dtype != np.uint8:
        raise UserError(
            f"{file}: {name}: images are {images.dtype}; expected uint8 of 0..255 (or uint16)"
        )
    if len(images) != labels:
        raise UserError(f"{file}: {name}: {len(images)} images and {labels} labels")
    if images.ndim == 3:
        return images[:, None]
    last, first = (images.ndim == 4 and images.shape[axis] in (1, 3) for axis in (3, 1))
    if last and first:
        raise UserError(
            f"{file}: {name}: of shape {images.shape} it is not clear which are the channels"
        )
    if not last and not first:
        raise UserError(
            f"{file}: {name}: images of shape {images.shape}; expected [N,H,W], [N,H,W,C] or "
            "[N,C,H,W] with 1 or 3 channels"
        )
    return images.transpose(0, 3, 1, 2) if last else images
