"""One small CIFAR-10 data set in the states that users' folders get into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.published import X_TEST as X_TEST
from tests.published import Y_TEST as Y_TEST
from tests.published import Pixels as Pixels
from tests.published import X as X
from tests.published import Y as Y
from tests.published import encode, write_batches, write_parquet
from tests.published import made as random_images
from tests.published import write_svhn as write_svhn


def write_shards(folder: Path, part: str, count: int, seed: int, changed: bool = False) -> None:
    """Random images in two files; changed: the last label is another."""
    images, labels = random_images(count, seed)
    labels[-1] = 9 - labels[-1] if changed else labels[-1]
    for place, rows in enumerate((slice(0, 9), slice(9, count))):
        file = folder / f"{part}-0000{place}-of-00002.parquet"
        write_parquet(file, [encode(image) for image in images[rows]], labels[rows])


def write(
    folder: Path,
    *,
    train: tuple[Pixels, list[int]] | None = (X, Y),
    test: tuple[Pixels, list[int]] | None = (X_TEST, Y_TEST),
) -> None:
    """Parquet; a part that is None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("test", test)):
        if part is not None:
            file = folder / "cifar10" / f"{name}-00000-of-00001.parquet"
            write_parquet(file, [encode(image) for image in part[0]], part[1])


def brighter(images: Pixels) -> Pixels:
    """One pixel of the last image is another."""
    changed = images.copy()
    changed[-1, 0, 0, 0] ^= 1
    return changed


def damaged(folder: Path) -> None:
    write(folder)
    (file,) = (folder / "cifar10").glob("train-*")
    file.write_bytes(file.read_bytes()[:-50])


SWAPPED, SWAPPED_TEST = [*Y[:-2], Y[-1], Y[-2]], [Y_TEST[1], Y_TEST[0], *Y_TEST[2:]]
MORE = np.concatenate([X, X[:1]]), [*Y, 0]

STATES: dict[str, Callable[[Path], object]] = {
    "same": write,
    "same in another layout": lambda folder: write_batches(folder, X, Y),
    "other training images": lambda folder: write(folder, train=(brighter(X), Y)),
    "an image more": lambda folder: write(folder, train=MORE),
    "other training labels": lambda folder: write(folder, train=(X, SWAPPED)),
    "other test images": lambda folder: write(folder, test=(brighter(X_TEST), Y_TEST)),
    "other test labels": lambda folder: write(folder, test=(X_TEST, SWAPPED_TEST)),
    "test files alone": lambda folder: write(folder, train=None),
    "training files alone": lambda folder: write(folder, test=None),
    "training files damaged": damaged,
    "gone": lambda folder: None,
}


def made(state: str, folder: Path) -> Path:
    """The folder in that state; where it is gone there is none."""
    STATES[state](folder)
    return folder
