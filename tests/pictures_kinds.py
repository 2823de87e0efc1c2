"""Kinds of picture: the file, and the pixels that it is or the refusal that it gets."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pictures_made import png, profile, saved, tiff

_rng = np.random.default_rng(17)
COLOUR = _rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
GREY = np.ascontiguousarray(COLOUR[..., 0])
FEW = np.array([[255, 0, 0], [0, 254, 1], [9, 8, 7], [200, 200, 200]], np.uint8)
INDICES = _rng.integers(0, 4, (32, 32), dtype=np.uint8)
LOW = _rng.integers(0, 256, (32, 32, 3), dtype=np.uint16)
"""The low eight bits of 16, which are to make no difference."""
COLOUR_16 = COLOUR.astype(np.uint16) * 256 + LOW
GREY_16 = np.ascontiguousarray(COLOUR_16[..., 0])
OPAQUE, SEEN_THROUGH = np.full((32, 32), 255, np.uint8), np.full((32, 32), 255, np.uint8)
SEEN_THROUGH[31, 31] = 254
PALETTE_16 = (np.tile(FEW, (64, 1)).T.ravel() * np.uint16(257)).tolist()
"""As TIFF has it: 256 reds, greens, blues."""
OPAQUE_16, SEEN_THROUGH_16 = OPAQUE * np.uint16(257), SEEN_THROUGH * np.uint16(257)
TRANSPARENT = "transparent in parts; flatten it"
NOT_ITS_COLOURS = "not sRGB's"


@dataclass(frozen=True)
class Kind:
    name: str
    made: Callable[[], bytes]
    is_: Any
    """uint8 [H,W] or [H,W,3], or a pattern of the refusal."""


def _image(array: Any) -> Image.Image:
    return Image.fromarray(array)


def _palette(kind: str, **options: Any) -> bytes:
    image = Image.fromarray(INDICES)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(FEW.tobytes())
    return saved(image, kind, **options)


def _linear(array: Any) -> Any:
    """By IEC 61966-2-1: a sample that means light, in sRGB."""
    light = np.asarray(array) / 255
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def _bmp_32(fourth: Any) -> bytes:
    samples = np.dstack([COLOUR[..., ::-1], fourth])[::-1]
    head = saved(_image(np.dstack([COLOUR, OPAQUE])), "BMP")[:54]
    return head + samples.tobytes()


def _bmp_short_grey_palette() -> bytes:
    """Two colours, black and white, at eight bits a pixel."""
    whole = saved(_image(GREY % 2), "BMP")
    data = bytearray(whole[:54] + b"\0\0\0\0\xff\xff\xff\0" + whole[54 + 1024 :])
    data[10:14] = (62).to_bytes(4, "little")
    data[46:50] = (2).to_bytes(4, "little")
    return bytes(data)


def _gif_part() -> bytes:
    """The frame covers the upper half of the canvas."""
    data = bytearray(_palette("GIF"))
    frame = data.index(b",", 13 + 3 * 4)
    data[frame + 7 : frame + 9] = (16).to_bytes(2, "little")
    return bytes(data)


def _animated(kind: str, **options: Any) -> bytes:
    later = _image(255 - COLOUR)
    return saved(_image(COLOUR), kind, save_all=True, append_images=[later], **options)


def _mpo() -> bytes:
    second = _image(255 - COLOUR)
    return saved(_image(COLOUR), "MPO", save_all=True, append_images=[second], quality=90)


def _as_pillow_reads(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def _jpeg_profile_behind() -> bytes:
    data = saved(_image(COLOUR), "JPEG")
    icc = b"ICC_PROFILE\0\1\1" + profile(1.0)
    scan = data.index(b"\xff\xda")
    return data[:scan] + b"\xff\xe2" + (len(icc) + 2).to_bytes(2, "big") + icc + data[scan:]


def _plain(magic: str, maxval: int, samples: Any) -> bytes:
    numbers = "\n".join(str(v) for v in np.asarray(samples).ravel())
    return f"{magic}\n# a comment\n32 32\n{maxval}\n{numbers}\n".encode()


def _binary(magic: str, maxval: int, samples: Any) -> bytes:
    kind = ">u2" if maxval > 255 else "u1"
    return f"{magic} 32 32 {maxval}\n".encode() + np.asarray(samples).astype(kind).tobytes()


def turned(upright: Any, orientation: int) -> Any:
    """How a camera stores a picture, by EXIF's words on its row 0 and column 0."""
    across = {2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    if orientation in across:
        return across[orientation]
    swapped = np.swapaxes(upright, 0, 1)
    return {
        1: upright,
        5: swapped,
        6: swapped[::-1],
        7: swapped[::-1, ::-1],
        8: swapped[:, ::-1],
    }[orientation]


def _tiffs() -> Iterator[Kind]:
    """Samples, how they are stored, and the picture: in both byte orders, plain and compressed."""
    for order, deflate in itertools.product("<>", (False, True)):
        rows: list[tuple[str, Any, dict[str, Any], Any]] = [
            ("16", COLOUR_16, {"photometric": 2}, COLOUR),
            ("16 grey", GREY_16, {"photometric": 1}, GREY),
            ("white is zero", 255 - GREY, {"photometric": 0}, GREY),
            ("16 white is zero", 65535 - GREY_16, {"photometric": 0},
             "white as zero" if order == "<" else "not a readable image"),
            ("planes", COLOUR, {"photometric": 2, "planar": True}, COLOUR),
            ("16 planes", COLOUR_16, {"photometric": 2, "planar": True},
             COLOUR if deflate else "16-bit planes"),
            ("16 opaque", np.dstack([COLOUR_16, OPAQUE_16]),
             {"photometric": 2, "tags": {338: (3, [2])}}, COLOUR),
            ("16 premultiplied", np.dstack([COLOUR_16, SEEN_THROUGH_16]),
             {"photometric": 2, "tags": {338: (3, [1])}}, TRANSPARENT),
            ("grey opaque", np.dstack([GREY, OPAQUE]),
             {"photometric": 1, "tags": {338: (3, [2])}}, GREY),
            ("grey premultiplied", np.dstack([GREY, SEEN_THROUGH]),
             {"photometric": 1, "tags": {338: (3, [1])}}, TRANSPARENT),
            ("no alpha", np.dstack([COLOUR, SEEN_THROUGH]),
             {"photometric": 2, "tags": {338: (3, [0])}}, COLOUR),
            ("signed", GREY.view(np.int8), {"photometric": 1, "tags": {339: (3, [2])}}, "signed"),
            ("16 signed", GREY_16.view(np.int16), {"photometric": 1, "tags": {339: (3, [2])}},
             "signed"),
            ("32", GREY.astype(np.uint32), {"photometric": 1},
             "32 bits" if order == "<" else "not a readable image"),
            ("float", (GREY / 255).astype(np.float32),
             {"photometric": 1, "tags": {339: (3, [3])}}, "floats"),
            ("lab", COLOUR, {"photometric": 8}, "neither grey, palette nor RGB"),
            ("cmyk", np.dstack([COLOUR, OPAQUE]), {"photometric": 5}, "neither grey, palette"),
            ("palette", INDICES,
             {"photometric": 3, "tags": {320: (3, PALETTE_16)}}, FEW[INDICES]),
            ("palette of 8 bits", INDICES,
             {"photometric": 3, "tags": {320: (3, list(range(256)) * 3)}}, "palette has 8 bits"),
            ("missing strips", GREY, {"photometric": 1, "tags": {278: (4, [16])}},
             "not a readable image" if deflate else "lacks some of its strips"),
        ]  # fmt: skip
        for name, samples, rest, is_ in rows:
            made = partial(tiff, samples, order=order, deflate=deflate, **rest)
            yield Kind(f"tiff {name} {order} deflate={deflate}", made, is_)


def _oriented() -> Iterator[Kind]:
    stored: list[tuple[str, dict[str, Any]]] = [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ]
    for (kind, rest), n in itertools.product(stored, range(1, 9)):
        image = _image(np.ascontiguousarray(turned(COLOUR, n)))
        made = partial(saved, image, kind, exif=_exif(n), **rest)
        yield Kind(f"{kind.lower()}{len(rest)} orientation {n}", made, COLOUR)


MADE: list[Kind] = [
    Kind("png", lambda: saved(_image(COLOUR), "PNG"), COLOUR),
    Kind("png interlaced", lambda: png(COLOUR, colour=2, interlaced=True), COLOUR),
    Kind("png grey", lambda: saved(_image(GREY), "PNG"), GREY),
    Kind("png 16", lambda: png(COLOUR_16, colour=2, depth=16), COLOUR),
    Kind("png 16 interlaced", lambda: png(COLOUR_16, colour=2, depth=16, interlaced=True), COLOUR),
    Kind("png 16 grey", lambda: png(GREY_16, colour=0, depth=16), GREY),
    Kind(
        "png 16 grey opaque",
        lambda: png(np.dstack([GREY_16, OPAQUE_16]), colour=4, depth=16),
        GREY,
    ),
    Kind(
        "png 16 opaque",
        lambda: png(np.dstack([COLOUR_16, OPAQUE_16]), colour=6, depth=16),
        COLOUR,
    ),
    Kind(
        "png 16 transparent",
        lambda: png(np.dstack([COLOUR_16, SEEN_THROUGH_16]), colour=6, depth=16),
        TRANSPARENT,
    ),
    Kind("png 1", lambda: png(GREY >> 7, colour=0, depth=1), (GREY >> 7) * np.uint8(255)),
    Kind("png 2", lambda: png(GREY >> 6, colour=0, depth=2), (GREY >> 6) * np.uint8(85)),
    Kind("png 4", lambda: png(GREY >> 4, colour=0, depth=4), (GREY >> 4) * np.uint8(17)),
    Kind("png palette", lambda: _palette("PNG"), FEW[INDICES]),
    Kind(
        "png palette opaque", lambda: _palette("PNG", transparency=b"\xff" * 4), FEW[INDICES]
    ),
    Kind("png palette transparent", lambda: _palette("PNG", transparency=2), TRANSPARENT),
    Kind("png palette part", lambda: _palette("PNG", transparency=b"\xff\xfe"), TRANSPARENT),
    Kind(
        "png palette too short",
        lambda: png(INDICES, colour=3, chunks=[(b"PLTE", FEW[:3].tobytes())]),
        "colour 3 of a palette of 3",
    ),
    Kind("png opaque", lambda: saved(_image(np.dstack([COLOUR, OPAQUE])), "PNG"), COLOUR),
    Kind(
        "png transparent", lambda: saved(_image(np.dstack([COLOUR, SEEN_THROUGH])), "PNG"),
        TRANSPARENT,
    ),
    Kind(
        "png grey transparent",
        lambda: png(np.dstack([GREY, SEEN_THROUGH]), colour=4),
        TRANSPARENT,
    ),
    Kind(
        "png colour key", lambda: png(FEW[INDICES], colour=2, chunks=[(b"tRNS", b"\0\1\0\2\0\3")]),
        FEW[INDICES],
    ),
    Kind(
        "png colour key used",
        lambda: png(FEW[INDICES], colour=2, chunks=[(b"tRNS", b"\0\11\0\10\0\7")]),
        TRANSPARENT,
    ),
    Kind(
        "png 16 colour key used",
        lambda: png(COLOUR_16, colour=2, depth=16,
                    chunks=[(b"tRNS", COLOUR_16[3, 3].astype(">u2").tobytes())]),
        TRANSPARENT,
    ),
    Kind(
        "png 16 grey key used",
        lambda: png(GREY_16, colour=0, depth=16,
                    chunks=[(b"tRNS", int(GREY_16[3, 3]).to_bytes(2, "big"))]),
        TRANSPARENT,
    ),
    Kind(
        "png 2 key used",
        lambda: png(GREY >> 6, colour=0, depth=2, chunks=[(b"tRNS", b"\0\3")]),
        TRANSPARENT,
    ),
    Kind(
        "png 1 key used",
        lambda: png(GREY >> 7, colour=0, depth=1, chunks=[(b"tRNS", b"\0\1")]),
        TRANSPARENT,
    ),
    Kind("apng", lambda: _animated("PNG"), "animated or of several pages"),
    Kind(
        "png sRGB", lambda: png(COLOUR, colour=2, chunks=[
            (b"sRGB", b"\0"), (b"gAMA", (100000).to_bytes(4, "big"))]),
        COLOUR,
    ),
    Kind(
        "png gamma", lambda: png(COLOUR, colour=2, chunks=[(b"gAMA", (45455).to_bytes(4, "big"))]),
        COLOUR,
    ),
    Kind(
        "png linear",
        lambda: png(COLOUR, colour=2, chunks=[(b"gAMA", (100000).to_bytes(4, "big"))]),
        NOT_ITS_COLOURS,
    ),
    Kind(
        "png wide",
        lambda: png(COLOUR, colour=2, chunks=[(b"cICP", b"\x0c\x0d\0\1")]),
        NOT_ITS_COLOURS,
    ),
    Kind(
        "png srgb cicp", lambda: png(COLOUR, colour=2, chunks=[(b"cICP", b"\1\x0d\0\1")]), COLOUR
    ),
    Kind("png linear profile", lambda: saved(_image(COLOUR), "PNG", icc_profile=profile(1.0)),
         _linear(COLOUR)),
    Kind("png grey linear profile",
         lambda: saved(_image(GREY), "PNG", icc_profile=profile(1.0, grey=True)), _linear(GREY)),
    Kind("png grey with colour profile",
         lambda: saved(_image(GREY), "PNG", icc_profile=profile(1.0)), _linear(GREY)),
    Kind("png colour with grey profile",
         lambda: saved(_image(COLOUR), "PNG", icc_profile=profile(1.0, grey=True)),
         "a grey colour profile"),
    Kind("png lab profile", lambda: saved(_image(COLOUR), "PNG", icc_profile=ImageCms
         .ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()), "for neither grey nor RGB"),
    Kind("png damaged profile", lambda: saved(_image(COLOUR), "PNG", icc_profile=b"no profile"),
         "its colour profile is damaged"),
    Kind("png unpackable profile",
         lambda: png(COLOUR, colour=2, chunks=[(b"iCCP", b"name\0\0no zlib")]),
         "its colour profile is damaged"),
    Kind("jpeg profile", lambda: saved(_image(COLOUR), "JPEG", icc_profile=b"no profile"),
         "its colour profile is damaged"),
    Kind("jpeg profile behind", _jpeg_profile_behind, "behind the header"),
    Kind("jpeg", lambda: saved(_image(COLOUR), "JPEG"),
         _as_pillow_reads(saved(_image(COLOUR), "JPEG"))),
    Kind("jpeg progressive", lambda: saved(_image(COLOUR), "JPEG", progressive=True),
         _as_pillow_reads(saved(_image(COLOUR), "JPEG", progressive=True))),
    Kind("jpeg grey", lambda: saved(_image(GREY), "JPEG"),
         _as_pillow_reads(saved(_image(GREY), "JPEG"))),
    Kind("jpeg cmyk", lambda: saved(_image(COLOUR).convert("CMYK"), "JPEG"), "colours are CMYK"),
    Kind("mpo", _mpo, _as_pillow_reads(_mpo())),
    Kind("webp", lambda: saved(_image(COLOUR), "WEBP", lossless=True), COLOUR),
    Kind("webp transparent",
         lambda: saved(_image(np.dstack([COLOUR, SEEN_THROUGH])), "WEBP", lossless=True),
         TRANSPARENT),
    Kind("webp animated", lambda: _animated("WEBP", lossless=True), "animated"),
    Kind("gif", lambda: _palette("GIF"), FEW[INDICES]),
    Kind("gif transparent", lambda: _palette("GIF", transparency=1), TRANSPARENT),
    Kind("gif animated", lambda: _animated("GIF"), "animated or of several pages"),
    Kind("gif part", _gif_part, "do not cover the picture"),
    Kind("bmp", lambda: saved(_image(COLOUR), "BMP"), COLOUR),
    Kind("bmp grey", lambda: saved(_image(GREY), "BMP"), GREY),
    Kind("bmp palette", lambda: _palette("BMP"), FEW[INDICES]),
    Kind("bmp 32", lambda: _bmp_32(OPAQUE), COLOUR),
    Kind("bmp 32 padded", lambda: _bmp_32(OPAQUE * 0), COLOUR),
    Kind("bmp 32 transparent", lambda: _bmp_32(SEEN_THROUGH), TRANSPARENT),
    Kind("bmp short grey palette", _bmp_short_grey_palette, "short grey palette"),
    Kind("tiff", lambda: saved(_image(COLOUR), "TIFF"), COLOUR),
    *_tiffs(),
    Kind("tiff 12", lambda: tiff(GREY, photometric=1, tags={258: (3, [12])}), "12 bits"),
    Kind("tiff pages", lambda: _animated("TIFF"), "animated or of several pages"),
    Kind("tiff lzw", lambda: saved(_image(COLOUR), "TIFF", compression="tiff_lzw"), COLOUR),
    Kind("tiff jpeg grey", lambda: saved(_image(GREY), "TIFF", compression="jpeg"),
         _as_pillow_reads(saved(_image(GREY), "TIFF", compression="jpeg"))),
    Kind("ppm", lambda: saved(_image(COLOUR), "PPM"), COLOUR),
    Kind("ppm 16", lambda: _binary("P6", 65535, COLOUR_16), COLOUR),
    Kind("pgm 16", lambda: _binary("P5", 65535, GREY_16), GREY),
    Kind("ppm 5", lambda: _binary("P6", 5, COLOUR // 51), COLOUR // 51 * 51),
    Kind("pgm 15", lambda: _binary("P5", 15, GREY >> 4), (GREY >> 4) * np.uint8(17)),
    Kind("pgm 1023", lambda: _binary("P5", 1023, GREY_16 >> 6), "values to 1023"),
    Kind("pgm beyond", lambda: _binary("P5", 100, GREY), "beyond its maximum of 100"),
    Kind("ppm text", lambda: _plain("P3", 255, COLOUR), COLOUR),
    Kind("pgm text 16", lambda: _plain("P2", 65535, GREY_16), GREY),
    Kind("ppm text 16", lambda: _plain("P3", 65535, COLOUR_16), "16 bits of colour as text"),
    Kind("pbm", lambda: saved(_image(GREY >> 7 > 0), "PPM"), (GREY >> 7) * np.uint8(255)),
    Kind("pfm", lambda: saved(_image((GREY / 255).astype(np.float32)), "PPM"), "floats"),
    *(
        Kind(kind.lower(), partial(saved, _image(COLOUR), kind), "not a readable image")
        for kind in ("EPS", "TGA", "PCX", "ICO", "SGI", "IM", "JPEG2000", "AVIF", "DDS", "PDF")
    ),
    *_oriented(),
]  # fmt: skip


KINDS = {kind.name: kind for kind in MADE}
assert len(KINDS) == len(MADE)
