"""Transparency in each way that a format has for it: a picture is opaque or it is refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from fmoe.data.pictures.refused import Refused

ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


def declared(image: Any, data: bytes) -> Any:
    """What the header says of transparency, as samples; to be asked before decoding.

    A colour or grey value, an index, alpha by index (bytes), the fourth bytes of a BMP, or None.
    """
    key = image.info.get("transparency")
    if image.format == "BMP":
        return _fourth_bytes(image, data)
    if image.format != "PNG" or key is None or image.mode == "P":
        return key
    rawmode = image.tile[0].args
    if image.mode == "RGB":
        return tuple(v >> 8 if rawmode == "RGB;16B" else v & 255 for v in key)
    if image.mode == "L":  # Pillow scales samples of 2 and 4 bits, not the key
        bits = {"L;2": 2, "L;4": 4}.get(rawmode, 8)
        return key % 2**bits * 255 // (2**bits - 1)
    return key


def _fourth_bytes(image: Any, data: bytes) -> bytes | None:
    codec, _, offset, args = image.tile[0]
    width, height = image.size
    if codec != "raw" or args[0] != "BGRX":
        return None
    return data[offset : offset + 4 * width * height][3::4]


def check(image: Any, samples: Any, key: Any) -> None:
    """Of a decoded picture. Raises `Refused` where a pixel is not opaque."""
    if image.mode in ALPHA:
        opaque = samples[..., -1] == 255
    elif key is None:
        return
    elif image.format == "BMP":
        opaque = np.array(set(key) in ({0}, {255}))
    elif isinstance(key, bytes):
        alpha = np.full(256, 255)
        alpha[: len(key)] = list(key[:256])
        opaque = alpha[samples] == 255
    elif image.mode == "RGB":
        opaque = (samples != key).any(axis=-1)
    else:
        opaque = samples != (bool(key) if image.mode == "1" else key)
    if not opaque.all():
        raise Refused("transparent in parts; flatten it onto a background")
