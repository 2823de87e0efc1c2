"""Images and labels as a reader found them: types, shapes and ranges, before anything uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmoe.errors import UserError

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
"""uint8 [N,C,H,W] and integers [N]."""
Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")
MOST_IMAGES = 2**18
"""In a file: 3.5 times SVHN's training images, and 0.8 GB of 3x32x32."""


@dataclass(frozen=True)
class Kind:
    """What a reader must know of a data set. shape: C, H, W; classes: names, label 0 first."""

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]


def checked(source: str, images: Any, labels: Any, kind: Kind) -> Arrays:
    """The same arrays, or `UserError`, which starts with `source`. Nothing is cast to fit."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.shape[1:] != kind.shape:
        raise UserError(
            f"{source}: {images.dtype} images of shape {images.shape}; "
            f"expected uint8 [N,{','.join(map(str, kind.shape))}]"
        )
    if len(images) == 0:
        raise UserError(f"{source}: holds no images, and there must be some")
    if labels.shape != (len(images),):
        given = f"{len(labels)} labels" if labels.ndim == 1 else f"labels of shape {labels.shape}"
        raise UserError(f"{source}: {len(images)} images with {given}; expected a label an image")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{source}: labels are {labels.dtype}; expected integers")
    last = len(kind.classes) - 1
    if labels.min() < 0 or labels.max() > last:
        raise UserError(
            f"{source}: labels must lie in 0..{last}, not {labels.min()}..{labels.max()}"
        )
    return images, labels


def quoted(names: Any) -> str:
    """Names out of a file, fit for a one-line message: the first eight, without control codes."""
    some = [ascii(str(name)[:40]).strip("'") for name in list(names)[:8]]
    return ", ".join(some) + (", ..." if len(names) > 8 else "") or "nothing"
