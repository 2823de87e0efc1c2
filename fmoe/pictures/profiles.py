"""An embedded ICC profile: nothing for what is sRGB, littleCMS to sRGB for another."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np

from fmoe.pictures.limits import LARGEST_PROFILE
from fmoe.pictures.refused import Refused

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

NO_CHANGE = 2
"""Levels of 255 by which a profile may move a colour and still counts as sRGB."""


def to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """uint8 [H,W] or [H,W,3] in the profile's colours -> in sRGB's; the same where it is sRGB.

    None is a profile that Pillow found and could not put together.
    """
    if profile is None or len(profile) > LARGEST_PROFILE:
        raise Refused("its colour profile is damaged or too large; convert it to sRGB")
    grey, transform = _transform(profile)
    if transform is None:
        return pixels
    if grey and pixels.ndim == 3:
        if (pixels != pixels[..., :1]).any():
            raise Refused("a colour picture with a grey colour profile; convert it to sRGB")
        pixels = pixels[..., 0]
    if not grey and pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    return _apply(transform, pixels)


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> tuple[bool, Any]:
    """(of grey pictures, the transform to sRGB or None where it changes nothing)."""
    from PIL import ImageCms

    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
        if space not in ("RGB ", "GRAY"):
            raise Refused(f"its colour profile is of {space.strip()}; convert it to sRGB")
        grey = space == "GRAY"
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), "L" if grey else "RGB", "RGB"
        )
        probe = _grey_ramp() if grey else _colours()
        moved = np.abs(_apply(transform, probe).astype(int) - (probe[..., None] if grey else probe))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("its colour profile is damaged; convert it to sRGB") from None
    return grey, None if moved.max() <= NO_CHANGE else transform


def _apply(transform: Any, pixels: Pixels) -> Pixels:
    from PIL import Image

    return np.asarray(transform.apply(Image.fromarray(pixels)))


def _grey_ramp() -> Pixels:
    return np.arange(256, dtype=np.uint8)[None]


def _colours() -> Pixels:
    """[1,N,3]: a cube of 9 levels a channel, and every grey."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    return np.concatenate([cube, np.repeat(_grey_ramp()[..., None], 3, axis=2)], axis=1)
