"""Bytes -> pixels: size, layout, decoding, orientation, transparency, colours, channels."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np

from fmoe.data.pictures import layouts, opaque, tiff
from fmoe.data.pictures.limits import LARGEST, LARGEST_EXIF
from fmoe.data.pictures.profiles import to_srgb
from fmoe.data.pictures.quiet import quiet, stderr_closed
from fmoe.data.pictures.refused import Refused
from fmoe.data.pictures.stream import Stream
from fmoe.errors import UserError, first_line

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
READABLE = "PNG, JPEG, WebP, BMP, GIF, TIFF, PBM, PGM or PPM"
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
EXIF_BLOCKS = ("exif", "Raw profile type exif")
"""Where Pillow looks for an orientation, of which it writes a new block without it."""
MODES = ("1", "L", "P", "RGB", *opaque.ALPHA, *SIXTEEN_BITS)


def decode(data: bytes, source: str, channels: int | None, largest: int = LARGEST) -> Pixels:
    """An encoded picture as uint8 [channels,H,W], channels 1 (grey) or 3 (RGB); None: as it has.

    largest: pixels, of which the header tells before anything is decoded.
    Raises `UserError`, which starts with `source`, for what is no picture or breaks a rule.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet():
            pixels = _planes(_pixels(data, largest), channels)
    except Refused as error:
        raise UserError(f"{source}: {error}") from None
    except UnidentifiedImageError:
        raise UserError(f"{source}: not a readable image (damaged, or not {READABLE})") from None
    except Image.DecompressionBombError:
        raise UserError(f"{source}: more than {LARGEST} pixels; make it smaller") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises many kinds for damaged bytes
        raise UserError(f"{source}: not a readable image ({first_line(error)})") from None
    return pixels


def _pixels(data: bytes, largest: int) -> Pixels:
    """uint8 [H,W] or [H,W,3], upright and in sRGB."""
    from PIL import Image, ImageFile, ImageOps

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise Refused("cannot be judged whole: unset PIL.ImageFile.LOAD_TRUNCATED_IMAGES")
    if not data:
        raise Refused("not a readable image (empty)")
    if len(data) > LARGEST:
        raise Refused(f"larger than {LARGEST >> 20} MiB; make it smaller")
    _check_size(layouts.webp_size(data), largest)
    tiff.header(data)
    with Image.open(Stream(data), formats=FORMATS) as opened:
        image = _first(opened, data)
        _check_size(image.size, largest)
        layouts.CHECKS[image.format](image, data)
        if image.format == "PPM" and image.tile[0].codec_name == "ppm":
            return _scaled_ppm(image, data)
        key = opaque.declared(image, data)
        with stderr_closed() if image.format == "TIFF" else nullcontext():
            image.load()
        if image.mode not in MODES and not (image.format == "PPM" and image.mode == "I"):
            raise Refused(f"its colours are {image.mode}, not grey, palette or RGB; convert it")
        if any(len(image.info.get(name) or b"") > LARGEST_EXIF for name in EXIF_BLOCKS):
            raise Refused("its EXIF block is too large; save it without")
        ImageOps.exif_transpose(image, in_place=True)
        samples = np.asarray(image)
        opaque.check(image, samples, key)
        pixels = _colours(image, samples)
        return to_srgb(pixels, image.info["icc_profile"]) if "icc_profile" in image.info else pixels


def _first(image: Any, data: bytes) -> Any:
    """The picture itself; of an MPO the first, read as the JPEG that it is."""
    from PIL.JpegImagePlugin import JpegImageFile

    if image.format == "MPO":
        return JpegImageFile(Stream(data))
    if getattr(image, "is_animated", False):
        raise Refused("animated or of several pages; give one picture of it")
    return image


def _check_size(size: tuple[int, int], largest: int) -> None:
    if math.prod(size) > largest:
        raise Refused(f"{size[0]}x{size[1]} pixels, more than {largest}; make it smaller")


def _scaled_ppm(image: Any, data: bytes) -> Pixels:
    """Binary, to another maximum than 255: Pillow takes long, rounds 16 bits, and clips."""
    (width, height), bands = image.size, len(image.getbands())
    _, _, offset, (_, maxval) = image.tile[0]
    kind = ">u1" if maxval < 256 else ">u2"
    values: Any = np.frombuffer(data, kind, width * height * bands, offset)
    if values.max() > maxval:
        raise Refused(f"damaged: it holds values beyond its maximum of {maxval}")
    scaled = values >> 8 if maxval == 65535 else (values * np.uint32(510) + maxval) // (2 * maxval)
    shape = (height, width) if bands == 1 else (height, width, 3)
    return np.asarray(scaled, dtype=np.uint8).reshape(shape)


def _colours(image: Any, samples: Any) -> Pixels:
    """uint8 [H,W] or [H,W,3] of opaque samples."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        indices = samples[..., 0] if image.mode == "PA" else samples
        if indices.max() >= len(palette):
            raise Refused(f"damaged: it uses colour {indices.max()} of a palette of {len(palette)}")
        return np.asarray(palette[indices])
    if image.mode == "1":
        samples = samples * np.uint8(255)
    elif image.mode.startswith("I"):
        samples = samples >> 8
    elif image.mode in ("LA", "La"):
        samples = samples[..., 0]
    elif samples.ndim == 3:
        samples = samples[..., :3]
    return np.asarray(samples, dtype=np.uint8)


def _planes(pixels: Pixels, channels: int | None) -> Pixels:
    """[H,W] or [H,W,3] as [C,H,W]."""
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes if channels is None else in_channels(planes, channels)


def in_channels(pixels: Pixels, channels: int) -> Pixels:
    """[C,H,W] of 1 or 3 channels as [`channels`,H,W]: luminance by ITU-R 601, or grey repeated."""
    from PIL import Image

    if len(pixels) == channels:
        return pixels
    if channels == 1:
        colour = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        return np.asarray(Image.fromarray(colour).convert("L"))[None]
    return np.repeat(pixels, 3, axis=0)
