"""A user's image file as the model's input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fmoe.errors import UserError, first_line


def read_image(path: Path, shape: Sequence[int]) -> Tensor:
    """Float [C,H,W] in [0,1], resized to `shape`. Raises `UserError` for no or a damaged image."""
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(path) as image:
            fitted = image.convert("L" if channels == 1 else "RGB")
            if fitted.size != (width, height):
                fitted = fitted.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.array(fitted, dtype=np.float32) / 255
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for damaged bytes
        raise UserError(f"{path}: not a readable image ({first_line(error)})") from None
    return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)
