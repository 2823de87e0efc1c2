"""What TIFF allows and Pillow would read wrongly or without an end, refused by its tags."""

from __future__ import annotations

import math
import struct
from typing import Any

from fmoe.data.pictures.limits import LARGEST, LONGEST_LIST
from fmoe.data.pictures.refused import Refused

BYTES = (1, 2, 6, 7)
"""Types whose lists Pillow keeps as bytes."""
COMPRESSIONS = {
    "raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma", "zstd", "webp",
    "jpeg", "tiff_ccitt", "group3", "group4",
}  # fmt: skip
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6


def header(data: bytes) -> None:
    """Refuses long lists before Pillow opens the file, which makes an object of every strip."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or not {42, 43} & set(data[2:4]):
        return
    big = 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    entry = struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    first = start + (8 if big else 2)
    whole = min(entries, (len(data) - first) // entry.size)
    for _, kind, count in entry.iter_unpack(data[first : first + entry.size * whole]):
        if kind not in BYTES and count > LONGEST_LIST:
            raise Refused("a TIFF in too many strips; save it again")


def check(image: Any, _: bytes) -> None:
    """Of the picture that Pillow has opened and not yet decoded."""
    from PIL import TiffImagePlugin as Tiff
    from PIL import TiffTags

    exif = image.getexif()
    for group in TiffTags.TAGS_V2_GROUPS:
        exif.pop(group, None)  # else Pillow reads all that a camera noted
    tags, compression = image.tag_v2, image.info["compression"]
    photometric = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO)
    bits = set(tags.get(Tiff.BITSPERSAMPLE, (1,)))
    if compression not in COMPRESSIONS:
        raise Refused(f"a TIFF compressed with {compression}; save it as PNG")
    if set(tags.get(Tiff.SAMPLEFORMAT, (1,))) != {1}:
        raise Refused("a TIFF of signed numbers or floats; save it with 8 bits per channel")
    if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}:
        depth = "/".join(str(b) for b in sorted(bits))
        raise Refused(f"a TIFF of {depth} bits; save it with 8 bits per channel")
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
        raise Refused("a TIFF whose colours are neither grey, palette nor RGB; convert it")
    if photometric == WHITE_IS_ZERO and bits == {16}:  # Pillow inverts fewer bits only
        raise Refused("a TIFF of 16 bits with white as zero; save it as PNG")
    if photometric == YCBCR and (compression != "jpeg" or len(image.getbands()) != 3):
        raise Refused("a TIFF whose colours are YCbCr, and not in JPEG; convert it")
    if photometric == PALETTE and max(tags[Tiff.COLORMAP]) in range(1, 256):
        raise Refused("a TIFF whose palette has 8 bits where 16 belong; save it as PNG")
    if tags.get(Tiff.TILEWIDTH, 1) * tags.get(Tiff.TILELENGTH, 1) > LARGEST:
        raise Refused("a TIFF of too large tiles; save it again")
    if compression == "raw":
        _check_strips(image, bits, planar=tags.get(Tiff.PLANAR_CONFIGURATION, 1) == 2)


def _check_strips(image: Any, bits: set[int], planar: bool) -> None:
    """Uncompressed: Pillow takes planes of 16 bits for 8, and what no strip covers is black."""
    if planar and bits != {8}:
        raise Refused(f"an uncompressed TIFF of {bits.pop()}-bit planes; save it as PNG")
    planes = len(image.getbands()) if planar else 1
    boxes = [tile.extents for tile in image.tile]
    if sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) != planes * math.prod(image.size):
        raise Refused("truncated: a TIFF that lacks some of its strips")
