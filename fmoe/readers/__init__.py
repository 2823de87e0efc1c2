"""Published files of a data set, each to the arrays (images, labels) of train or of test.

images: uint8 [N,C,H,W]; labels: integers [N]. Every reader finds its layout in a folder, checks
types, shapes and ranges, and raises `UserError` with the file's name. Who reads train does not
open test, and the other way round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fmoe.errors import UserError
from fmoe.readers import cifar, parquet, svhn_mat
from fmoe.readers.arrays import PARTS, Arrays, Kind, Part, checked
from fmoe.readers.aside import remove_left
from fmoe.readers.download import downloaded
from fmoe.readers.prepared import read_prepared, write_prepared
from fmoe.readers.shards import CONFIGS

__all__ = [
    "PARTS",
    "Arrays",
    "Kind",
    "Part",
    "checked",
    "digits",
    "downloaded",
    "published",
    "read_prepared",
    "remove_left",
    "write_prepared",
]

DIGITS_TEST_IMAGES = 360
ORIGINAL = {"cifar10": cifar.ARCHIVE, "svhn": "{train,test}_32x32.mat"}


def digits(part: Part) -> Arrays:
    """scikit-learn's 8x8 scans, 0..16 scaled to 0..255; a fixed 360 of 1,797 are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.RandomState(0).permutation(len(images))
    rows = order[:DIGITS_TEST_IMAGES] if part == "test" else order[DIGITS_TEST_IMAGES:]
    return images[rows], bunch.target[rows]


def published(kind: Kind, folder: Path, part: Part) -> Arrays:
    """From the folder NAME in `folder`, or from `folder` itself if it is not another set's own."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such data folder")
    places = [folder / kind.name]
    if not _of_another(kind.name, folder.resolve()):
        places.append(folder)
    for place in places:
        layouts = [
            *parquet.found(kind, place),
            *cifar.found(kind, place),
            *svhn_mat.found(kind, place),
        ]
        if len(layouts) > 1:
            both = " and ".join(layout.example for layout in layouts[:2])
            raise UserError(f"{place}: holds {kind.name} twice, {both}; keep one of the two")
        if layouts:
            return layouts[0].read(part)
    raise UserError(
        f"{folder}: holds no {kind.name}: expected {kind.name}/{{train,test}}-*.parquet as the "
        f"Hugging Face hub has it, or the published {ORIGINAL[kind.name]}"
    )


def _of_another(name: str, folder: Path) -> bool:
    """By the names of sets and of the hub's folders; the pictures have the same size."""
    hub = {text for key, config in CONFIGS.items() if key != name for text in (key, config)}
    inner = folder.name in ("data", "default") and folder.parent.name in hub
    return inner or folder.name in {*hub, "digits", "full_numbers"}
