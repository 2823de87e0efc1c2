"""What a format allows and Pillow would read wrongly, in part or without an end: refused by header.

A check of CHECKS sees the picture that Pillow has opened and not yet decoded, and the whole file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fmoe.data.pictures import tiff
from fmoe.data.pictures.limits import LARGEST_RLE, LARGEST_TEXT, SCANS
from fmoe.data.pictures.refused import Refused
from fmoe.data.pictures.stream import Stream

BMP_RAW = {1: {"1", "P;1"}, 4: {"P;4"}, 8: {"L", "P"}}
"""Bits per pixel to how Pillow has to read them; it forgets them where the palette is grey."""
SRGB_GAMMA, SRGB_CHROMATICITY = 1 / 2.2, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
CICP_SRGB = b"\0\0\0\4cICP\1\r\0\1"
"""Primaries 1, transfer function 13, no matrix, full range."""


def _png(image: Any, data: bytes) -> None:
    from PIL import Image

    _check_covered(image)
    with Image.open(Stream(data), formats=["PNG"]) as again:
        again.verify()  # decoding ignores the checksums and what is missing behind the pixels
    info = image.info
    if "icc_profile" in info:
        return
    head = data[: image.tile[0].offset]
    if b"cICP" in head and CICP_SRGB not in head:
        raise Refused("its colours are not sRGB's (cICP); convert it to sRGB")
    given = (info.get("gamma", SRGB_GAMMA), *info.get("chromaticity", SRGB_CHROMATICITY))
    if "srgb" not in info and not all(
        math.isclose(value, srgb, abs_tol=0.01)
        for value, srgb in zip(given, (SRGB_GAMMA, *SRGB_CHROMATICITY), strict=True)
    ):
        raise Refused("its colours are not sRGB's (gAMA, cHRM); convert it to sRGB")


def _jpeg(image: Any, data: bytes) -> None:
    _check_covered(image)
    start = image.fp.tell()  # Pillow has read as far as the first scan's header
    end = data.find(b"\xff\xd9", start)
    if end < 0:
        raise Refused("truncated: it has no end marker")
    if data.count(b"\xff\xda", start, end) >= SCANS:
        raise Refused(f"a JPEG of more than {SCANS} scans; save it again")
    if image.icclist:
        raise Refused("its colour profile stands behind the header; save it again")


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height), (0, 0) for what is no WebP. Refuses animations.

    Opening a WebP allocates its canvas: the size has to be known before.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return 0, 0
    kind, head = data[12:16], data[20:30]

    def number(start: int, end: int) -> int:
        return int.from_bytes(head[start:end], "little")

    if kind == b"VP8X":
        if number(0, 1) & 2:
            raise Refused("animated; give one picture of it")
        return number(4, 7) + 1, number(7, 10) + 1
    if kind == b"VP8L":
        return (number(1, 5) & 0x3FFF) + 1, (number(1, 5) >> 14 & 0x3FFF) + 1
    return number(6, 8) & 0x3FFF, number(8, 10) & 0x3FFF


def _webp(image: Any, data: bytes) -> None:
    """Nothing is left to check: `webp_size` came before, and libwebp wants all of the file."""


def _bmp(image: Any, data: bytes) -> None:
    _check_covered(image)
    bits = int.from_bytes(data[24:26] if data[14] == 12 else data[28:30], "little")
    codec, _, _, args = image.tile[0]
    if codec == "raw" and args[0] not in BMP_RAW.get(bits, {args[0]}):
        raise Refused(f"a BMP of {bits} bits with a short grey palette; save it as PNG")
    if codec == "bmp_rle" and (image.mode == "1" or math.prod(image.size) > LARGEST_RLE):
        raise Refused("a run-length BMP, black and white or large; save it as PNG")


def _gif(image: Any, data: bytes) -> None:
    _check_covered(image)
    if not data.rstrip(b"\0").endswith(b";"):
        raise Refused("truncated: it has no end marker")


def _ppm(image: Any, data: bytes) -> None:
    _check_covered(image)
    kind, args = data[1:2], image.tile[0].args
    maxval = args[1] if isinstance(args, tuple) and len(args) == 2 else 255
    if kind not in b"123456":
        raise Refused("floats or another extension of PPM; save it with 8 bits per channel")
    if 255 < maxval < 65535:
        raise Refused(f"a PPM with values to {maxval}, not 255 or 65535; save it with 8 bits")
    if kind in b"123":
        if not data[-1:].isspace():
            raise Refused("truncated: its last number has no end")
        if len(data) > LARGEST_TEXT:
            raise Refused("a large picture as text; save it in binary")
        if image.mode == "RGB" and maxval == 65535:  # Pillow rounds where high bits are kept
            raise Refused("16 bits of colour as text; save it in binary")


def _check_covered(image: Any) -> None:
    """What the file leaves undefined, Pillow makes black."""
    if [tile.extents for tile in image.tile] not in ([], [(0, 0, *image.size)]):
        raise Refused("its pixels do not cover the picture; save it again")


CHECKS: dict[str, Callable[[Any, bytes], None]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "BMP": _bmp,
    "GIF": _gif,
    "TIFF": tiff.check,
    "PPM": _ppm,
}
