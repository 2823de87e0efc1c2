"""Picture files that Pillow cannot write: PNG and TIFF sample by sample, colour profiles."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = [
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
]  # fmt: skip
"""First row, first column, step down, step right of each pass."""


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def _rows(samples: Any, depth: int) -> bytes:
    """Filter 0 and the packed samples, row by row; samples [H,W,C]."""
    if depth == 16:
        packed = samples.astype(">u2").reshape(len(samples), -1).view(np.uint8)
    elif depth == 8:
        packed = samples.astype(np.uint8).reshape(len(samples), -1)
    else:
        bits = (samples[..., 0, None] >> np.arange(depth - 1, -1, -1)) & 1
        packed = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


def png(
    samples: Any,
    *,
    colour: int,
    depth: int = 8,
    interlaced: bool = False,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Samples [H,W] or [H,W,C] of 0..2^depth-1 as PNG's colour type; `chunks` before the pixels."""
    samples = np.asarray(samples).reshape(*np.shape(samples)[:2], PNG_CHANNELS[colour])
    height, width = samples.shape[:2]
    passes = (
        [samples[y::down, x::right] for y, x, down, right in ADAM7] if interlaced else [samples]
    )
    pixels = b"".join(_rows(one, depth) for one in passes if one.size)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*one) for one in chunks)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def tiff(
    samples: Any,
    *,
    photometric: int,
    order: str = "<",
    deflate: bool = False,
    planar: bool = False,
    tags: Mapping[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """Samples [H,W] or [H,W,C] of any type in one strip (planar: one a channel).

    `tags`: number -> (1 byte, 3 short or 4 long; values), before all others.
    """
    samples = np.asarray(samples)
    samples = samples.reshape(*samples.shape[:2], -1)
    height, width, channels = samples.shape
    kind = samples.dtype.newbyteorder(order)
    parts = [samples[..., i] for i in range(channels)] if planar else [samples]
    strips = [np.ascontiguousarray(part, dtype=kind).tobytes() for part in parts]
    if deflate:
        strips = [zlib.compress(strip) for strip in strips]
    places = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    entries: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * samples.dtype.itemsize] * channels),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        273: (4, places),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        **(tags or {}),
    }
    start = 8 + sum(map(len, strips)) + 1 & ~1
    behind, table, values = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, (kind_of, given) in sorted(entries.items()):
        packed = struct.pack(order + {1: "B", 3: "H", 4: "I"}[kind_of] * len(given), *given)
        if len(packed) > 4:
            where = struct.pack(order + "I", behind + len(values))
            values += packed + b"\0" * (len(packed) % 2)
        else:
            where = packed.ljust(4, b"\0")
        table += struct.pack(order + "HHI", tag, kind_of, len(given)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", len(entries)) + table + b"\0" * 4
    return (head + b"".join(strips)).ljust(start, b"\0") + directory + values


def profile(gamma: float, *, grey: bool = False) -> bytes:
    """An ICC profile: sRGB's primaries (or grey) with a power law in place of its curve."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    if grey:
        tags[b"kTRC"] = curve
    else:
        tags |= {
            b"rXYZ": xyz(0.4361, 0.2225, 0.0139),
            b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
            b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
            b"rTRC": curve,
            b"gTRC": curve,
            b"bTRC": curve,
        }
    table, content = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(value))
        content += value
    header = struct.pack(
        ">I4sI4s4s4s12x4s4x12xI12s48x",
        132 + 12 * len(tags) + len(content),
        b"lcms",
        0x02400000,
        b"mntr",
        b"GRAY" if grey else b"RGB ",
        b"XYZ ",
        b"acsp",
        0,
        struct.pack(">iii", 63190, 65536, 54061),
    )
    return header.ljust(128, b"\0") + table + content


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
