"""An embedded ICC profile: nothing for what is sRGB, littleCMS to sRGB for another."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from fmoe.data.pictures.limits import LARGEST_PROFILE
from fmoe.data.pictures.refused import Refused

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

NO_CHANGE = 2
"""Levels of 255 by which a profile may move a colour and still counts as sRGB."""


def to_srgb(pixels: Pixels, profile: bytes | None) -> Pixels:
    """uint8 [H,W] or [H,W,3] in the profile's colours -> in sRGB's; the same where it is sRGB.

    None is a profile that Pillow found and could not put together.
    """
    if profile is None or len(profile) > LARGEST_PROFILE:
        raise Refused("its colour profile is damaged or too large; convert it to sRGB")
    grey, change = _change(profile)
    if change is None:
        return pixels
    if grey:
        if pixels.ndim == 3 and (pixels != pixels[..., :1]).any():
            raise Refused("a colour picture with a grey colour profile; convert it to sRGB")
        return change(pixels[..., 0] if pixels.ndim == 3 else pixels)
    return change(np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels)


@lru_cache(maxsize=8)
def _change(profile: bytes) -> tuple[bool, Callable[[Pixels], Pixels] | None]:
    """(is it for grey, [H,W] or [H,W,3] -> [H,W,3] in sRGB); None where that changes nothing."""
    from PIL import ImageCms

    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space
        if space not in ("RGB ", "GRAY"):
            raise Refused("its colour profile is for neither grey nor RGB; convert it to sRGB")
        if space == "GRAY":
            ramp = np.arange(256, dtype=np.uint8)[None]
            # unoptimized: littleCMS is 10 levels off in the shadows otherwise
            table = _apply(_transform(source, "L", ImageCms.Flags.NOOPTIMIZE), ramp)[0]
            return True, None if _near(table, ramp.T) else table.__getitem__
        transform, probe = _transform(source, "RGB", ImageCms.Flags.NONE), _colours()
        return False, None if _near(_apply(transform, probe), probe) else partial(_apply, transform)
    except (ImageCms.PyCMSError, OSError, TypeError):
        raise Refused("its colour profile is damaged; convert it to sRGB") from None


def _transform(source: Any, mode: str, flags: Any) -> Any:
    from PIL import ImageCms

    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)


def _apply(transform: Any, pixels: Pixels) -> Pixels:
    from PIL import Image

    return np.asarray(transform.apply(Image.fromarray(np.ascontiguousarray(pixels))))


def _near(given: Pixels, srgb: Pixels) -> bool:
    return bool(np.abs(given.astype(int) - srgb).max() <= NO_CHANGE)


def _colours() -> Pixels:
    """[1,N,3]: a cube of 9 levels a channel, and every grey."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    return np.concatenate([cube, greys], axis=1)
