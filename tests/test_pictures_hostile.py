"""Files that are to harm: no program is started, nothing hangs, crashes or fills the memory."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from fmoe import data
from fmoe.data.images import read_image
from fmoe.data.pictures import LARGEST, decode
from fmoe.errors import UserError
from tests.pictures_kinds import COLOUR, GREY
from tests.pictures_made import chunk, png, saved, tiff

SHAPE = (3, 32, 32)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `gs` that leaves a mark where it is started."""
    mark, folder = tmp_path / "started", tmp_path / "bin"
    folder.mkdir()
    (folder / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # what it found before
    return mark


@pytest.mark.parametrize("before", [b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 12, 4000)])
def test_postscript_starts_no_program(before: bytes, ghostscript: Path, tmp_path: Path) -> None:
    written = before + saved(Image.fromarray(COLOUR), "EPS")
    (tmp_path / "cat.png").write_bytes(written)
    with pytest.raises(UserError, match=r"cat\.png: not a readable image"):
        read_image(tmp_path / "cat.png", SHAPE)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for part in ("train", "test"):
        cells = [{"bytes": cell, "path": None} for cell in (png(COLOUR, colour=2), written)]
        table = pa.table({"img": cells, "label": pa.array([0, 1], pa.int64())})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"\.parquet: row 1: not a readable image"):
        data.load("cifar10", tmp_path, val_images=1)
    assert not ghostscript.exists()


def _scans() -> bytes:
    """A progressive JPEG with its last scan 2,000 times; each costs a pass over all pixels."""
    whole = saved(Image.new("RGB", (4096, 4096)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda"))
    return whole[:-2] + whole[last:-2] * 2000 + b"\xff\xd9"


def _header(width: int, height: int) -> bytes:
    return (
        png(GREY, colour=0)[:8]
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )


def _gif(width: int, height: int, extensions: bytes = b"") -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\0\0"
    return screen + extensions + frame


def _webp(width: int, height: int) -> bytes:
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    content = b"WEBPVP8X" + struct.pack("<II", 10, 0) + canvas + b"VP8L" + b"\0" * 64
    return b"RIFF" + struct.pack("<I", len(content)) + content


def _bmp(width: int, height: int, compression: int, pixels: bytes) -> bytes:
    head = struct.pack("<IIIHHIIIIII", 40, width, height, 1, 8, compression, 0, 0, 0, 0, 0)
    palette = b"".join(bytes([i, 0, i, 0]) for i in range(256))
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + head + palette + pixels


def _text(packed: bytes, times: int = 1) -> bytes:
    return png(GREY, colour=0, chunks=[(b"zTXt", b"key\0\0" + packed)] * times)


def _tiff_of_tiles(count: int) -> bytes:
    tags: dict[int, Any] = {322: (4, [1]), 323: (4, [1]), 324: (4, [8] * count)}
    return tiff(GREY, photometric=1, tags=tags)


JPEG = saved(Image.fromarray(COLOUR), "JPEG")
BOMBS: dict[str, Callable[[], bytes]] = {
    "png 60000": lambda: _header(60000, 60000),
    "png 2^31": lambda: _header(2**31 - 1, 2**31 - 1),
    "png at the limit": lambda: _header(8192, 8193),
    "png text": lambda: _text(zlib.compress(b"\0" * 2**28)),
    "png texts": lambda: _text(zlib.compress(b"\0" * 2**20), 200),
    "png profile": lambda: png(
        GREY, colour=0, chunks=[(b"iCCP", b"name\0\0" + zlib.compress(b"\0" * 2**28))]
    ),
    "png exif": lambda: png(
        GREY, colour=0, chunks=[(b"eXIf", _exif().tobytes()[6:] + b"\0" * 2**24)]
    ),
    "png chunks": lambda: png(GREY, colour=0, chunks=[(b"teSt", b"")] * 2**20),
    "gif 65535": lambda: _gif(65535, 65535),
    "gif blocks": lambda: _gif(8, 8, b"!\xfe\1a\0" * 2**20),
    "webp 16384": lambda: _webp(16384, 16384),
    "webp 2^24": lambda: _webp(2**24, 255),
    "tiff 10^6": lambda: tiff(
        GREY, photometric=1, tags={256: (4, [10**6]), 257: (4, [10**6])}
    ),
    "tiff tiles": lambda: _tiff_of_tiles(2**21),
    "tiff huge tile": lambda: tiff(
        GREY, photometric=1, deflate=True,
        tags={322: (4, [2**28]), 323: (4, [2**28]), 324: (4, [8]), 325: (4, [64])},
    ),
    "jpeg 65500": lambda: JPEG.replace(b"\0\x11\x08\0\x20\0\x20", b"\0\x11\x08\xff\xdc\xff\xdc"),
    "jpeg padding": lambda: JPEG[:2] + b"\xff" * 2**23 + JPEG[2:],
    "jpeg segments": lambda: JPEG[:2] + b"\xff\xe1\0\2" * 2**21 + JPEG[2:],
    "jpeg scans": _scans,
    "bmp 2^31": lambda: _bmp(2**31 - 1, 2**30, 0, b""),
    "bmp run": lambda: _bmp(2**26, 1, 1, b"\1\1\0\0\0\1"),
    "ppm 10^9": lambda: b"P6 1000000000 1000000000 255\n",
    "ppm comment": lambda: b"P5\n#" + b"a" * 2**22 + b"\n8 8\n255\n" + b"\0" * 64,
    "ppm text": lambda: b"P3 4096 4096 255\n" + b"0 " * 2**24,
}  # fmt: skip


def test_bombs_take_seconds_and_little_memory(tmp_path: Path) -> None:
    """Each in a process of its own kind: 4 GB of addresses, one thread."""
    for name, made in BOMBS.items():
        (tmp_path / name).write_bytes(made())
    code = """if True:
        import json, resource, sys, time
        resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
        from pathlib import Path
        from fmoe.errors import UserError
        from fmoe.data.images import read_image
        answers = {}
        for path in map(Path, sys.argv[1:]):
            start = time.monotonic()
            try:
                read_image(path, (3, 32, 32))
                message = ""
            except UserError as error:
                message = str(error)
            answers[path.name] = message, time.monotonic() - start
        print(json.dumps(answers))
    """
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *(str(tmp_path / name) for name in BOMBS)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    answers = json.loads(ended.stdout)
    assert answers.keys() == BOMBS.keys()
    for name, (message, seconds) in answers.items():
        assert message.startswith(f"{tmp_path / name}: "), name
        assert message.count("\n") == 0
        assert seconds < 30, (name, seconds)


def test_size_is_known_by_the_header() -> None:
    """Nothing is decoded: a file without pixels gets the same answer."""
    for made in ("png at the limit", "png 60000", "gif 65535", "webp 16384", "tiff 10^6"):
        with pytest.raises(UserError, match=r"^here: .*more than (67108864|\d+ pixels)"):
            decode(BOMBS[made](), "here", 3)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "loop": lambda path: path.symlink_to(path),
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "large": lambda path: path.write_bytes(b"\0" * (LARGEST + 1)),
    "x/through a file": lambda path: path.parent.touch(),
}


@pytest.mark.timeout(20)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_picture_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    path = Path(kind)
    NO_FILES[kind](path)
    with pytest.raises(UserError, match=rf"^{path}: ") as refusal:
        read_image(path, SHAPE)
    assert "\n" not in str(refusal.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(png(COLOUR, colour=2))
    read_image(path, SHAPE)
    path.chmod(0o600)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"mine\.png: cannot be read \(Permission denied\)"):
            read_image(path, SHAPE)
    finally:
        os.seteuid(0)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271] = 1, "a maker"
    return exif


def _files() -> dict[str, bytes]:
    colour, grey = Image.fromarray(COLOUR), Image.fromarray(GREY)
    later = {"save_all": True, "append_images": [grey]}
    compressions = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "jpeg")
    return {
        "png": saved(colour, "PNG", exif=_exif()),
        "png interlaced": png(COLOUR, colour=2, interlaced=True),
        "png 16": png(GREY.astype(np.uint16) * 257, colour=0, depth=16),
        "png palette": saved(colour.quantize(60), "PNG"),
        "jpeg": saved(colour, "JPEG", exif=_exif()),
        "jpeg progressive": saved(colour, "JPEG", progressive=True),
        "mpo": saved(colour, "MPO", **later),
        "webp": saved(colour, "WEBP", exif=_exif()),
        "webp lossless": saved(colour, "WEBP", lossless=True),
        "gif": saved(colour.quantize(60), "GIF"),
        "bmp": saved(colour, "BMP"),
        "bmp palette": saved(colour.quantize(60), "BMP"),
        **{f"tiff {c}": saved(colour, "TIFF", compression=c) for c in compressions},
        "tiff group4": saved(grey.convert("1"), "TIFF", compression="group4"),
        "ppm": saved(colour, "PPM"),
        "pgm 15": b"P5 8 8 15\n" + bytes(range(16)) * 4,
        "ppm text": b"P3\n#\n2 2\n255\n1 2 3 4 5 6 7 8 9 10 11 12\n",
    }


FILES = _files()


def attempt(data: bytes, channels: int) -> Any:
    """The pixels, or None where they are refused; anything else is the test's failure."""
    try:
        pixels = decode(data, "here", channels)
    except UserError as error:
        message = str(error)
    else:
        assert pixels.dtype == np.uint8
        assert (pixels.ndim, pixels.shape[0]) == (3, channels)
        return pixels
    assert message.startswith("here: ")
    assert "\n" not in message
    return None


@pytest.mark.parametrize("name", FILES)
def test_truncated_is_refused(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Or it lacked nothing that belongs to the pixels (the end of an MPO is another picture)."""
    whole = attempt(FILES[name], 3)
    assert whole is not None
    size, refused = len(FILES[name]), 0
    cuts = {0, 1, 2, 4, 8, 16, 64, *(size * i // 16 for i in range(16)), *range(size - 16, size)}
    for cut in sorted(cut for cut in cuts if 0 <= cut < size):
        part = attempt(FILES[name][:cut], 3)
        refused += part is None
        assert part is None or np.array_equal(part, whole), cut
    assert refused >= (12 if name == "mpo" else 18)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FILES)
def test_changed_bytes(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng, seen = random.Random(name), set()
    for _ in range(40):
        changed = bytearray(FILES[name])
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(min(len(changed), rng.choice((60, 400, 10**6))))
            changed[place] = rng.choice((changed[place] ^ 1 << rng.randrange(8), 0, 127, 255))
        seen.add(attempt(bytes(changed), rng.choice((1, 3))) is None)
    assert True in seen
    assert capfd.readouterr() == ("", "")


TALKATIVE = {
    "exif": FILES["jpeg"].replace(b"MM\0*\0\0\0\x08\0\x02", b"MM\0*\0\0\0\x08\0\x40"),
    "apng": png(COLOUR, colour=2, chunks=[(b"acTL", b"\0" * 8)]),
    "samples": tiff(GREY, photometric=1, tags={277: (4, [10**6])}),
    "no strip": tiff(GREY, photometric=1, deflate=True, tags={278: (4, [16])}),
}
"""Of which Pillow warns, logs an error, or libtiff writes to stderr."""


def test_libraries_say_nothing_in_any_thread(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    filters = list(warnings.filters)
    handlers = list(logging.getLogger("PIL").handlers)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: attempt(data, 3), list(TALKATIVE.values()) * 20))
    assert warnings.filters == filters
    assert logging.getLogger("PIL").handlers == handlers
    assert capfd.readouterr() == ("", "")
    for kind, words in (("apng", "Invalid APNG"), ("exif", "Corrupt EXIF")):
        with (
            pytest.warns(UserWarning, match=words),
            Image.open(io.BytesIO(TALKATIVE[kind])) as image,
        ):
            image.getexif()


def test_truncation_stays_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another library of the process asked Pillow to fill in what lacks."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UserError, match="LOAD_TRUNCATED_IMAGES"):
        decode(FILES["jpeg"][:600], "here", 3)
