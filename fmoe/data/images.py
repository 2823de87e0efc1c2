"""A user's image files: their bytes, and their pixels in the size that a model takes."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmoe.data.pictures import LARGEST, decode
from fmoe.errors import UserError, first_line

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def read_image(path: Path, shape: Sequence[int]) -> Tensor:
    """Float [C,H,W] in [0,1], resized to `shape` (bilinear, on 8 bits).

    Raises `UserError` for what is no file, or not a picture that `fmoe.data.pictures` reads.
    """
    channels, height, width = shape
    pixels = resized(decode(contents(path), str(path), channels), (height, width))
    return torch.from_numpy(np.array(pixels, dtype=np.float32)) / 255


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """uint8 [C,H,W] -> [C,*size]: Pillow's bilinear filter, antialiased where it makes smaller."""
    from PIL import Image

    if pixels.shape[1:] == size:
        return pixels
    planes = (
        Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR)
        for plane in np.ascontiguousarray(pixels)
    )
    return np.stack([np.asarray(plane) for plane in planes])


def contents(path: Path) -> bytes:
    """At most a byte more than is decoded, of a regular file: pipes and devices may never end."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)

    try:
        with open(path, "rb", opener=opener) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise UserError(f"{path}: not a readable image (no file, but a pipe or a device)")
            return stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: not a readable image (a folder)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None
