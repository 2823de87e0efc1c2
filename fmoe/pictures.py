"""One decoder of image files for every reader and for `predict`, with stated rules."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from fmoe.errors import UserError, first_line

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(data: bytes, source: str, channels: int) -> Pixels:
    """An encoded picture as uint8 [channels,H,W], channels 1 (grey) or 3 (RGB).

    Raises `UserError`, which starts with `source`, for what is no picture or cannot be one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for damaged bytes
        raise UserError(f"{source}: not a readable image ({first_line(error)})") from None
    return pixels.reshape(*pixels.shape[:2], channels).transpose(2, 0, 1)
