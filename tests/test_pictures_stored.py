"""One picture in every way that Pillow stores it without loss: one answer, or a refusal by name."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from fmoe import assembly, config, model_folder
from fmoe.data.pictures import decode
from fmoe.data.pictures.quiet import stderr_closed
from fmoe.errors import UserError
from fmoe.storage.folder import Folder
from pipelines.cli import main
from tests.conftest import SMALL
from tests.pictures_kinds import COLOUR, FEW, INDICES, turned
from tests.pictures_made import png, saved

GREY = np.random.default_rng(3).integers(0, 256, (8, 8), dtype=np.uint8)
BLACK_WHITE = GREY // 128 * np.uint8(255)
PICTURES = {"grey": GREY, "black and white": BLACK_WHITE, "colour": COLOUR, "few": FEW[INDICES]}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "PNG": [
        {"compress_level": 0},
        {"compress_level": 9},
        {"optimize": True},
        {"icc_profile": SRGB},
        {"dpi": (72, 72)},
    ],
    "TIFF": [
        *(
            {"compression": name}
            for name in ("packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "lzma")
        ),
        *({"compression": name} for name in ("zstd", "group3", "group4", "tiff_ccitt")),
        {"compression": "tiff_lzw", "tiffinfo": {317: 2}},  # differences of neighbours
        {"tiffinfo": {278: 1}},  # a row a strip
        {"big_tiff": True},
        {"icc_profile": SRGB},
    ],
    "WEBP": [
        {"lossless": True, "quality": 0, "method": 0},
        {"lossless": True, "quality": 100, "method": 6},
        {"lossless": True, "exact": True},
        {"lossless": True, "icc_profile": SRGB},
    ],
    "GIF": [{"interlace": 0}, {"optimize": True}],
}
ALWAYS: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}}
LOSSY = {"JPEG", "MPO", "JPEG2000", "AVIF", "PDF", "BLP", "DDS"}
EXACT = {
    "GIF": {"1", "L", "P", "RGB"},
    "WEBP": {"1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA"},
}
"""What these store as it is; they convert other modes with a loss of their own."""
READ = {"PNG", "TIFF", "BMP", "PPM", "WEBP", "GIF"}
PLAIN = {"1", "L", "P", "RGB"}


def modes(picture: Any) -> Iterator[Image.Image]:
    """The picture in each of Pillow's modes that holds it."""
    image = Image.fromarray(picture)
    colour = image.convert("RGB")
    yield image
    yield colour
    yield from (colour.convert(mode) for mode in ("RGBA", "RGBX"))
    yield colour.convert("RGBA").convert("RGBa")
    palette = colour.quantize(256)
    if np.array_equal(np.asarray(palette.convert("RGB")), np.asarray(colour)):
        yield palette
        yield palette.convert("PA")
    if picture.ndim == 2:
        yield image.convert("LA")
        yield image.convert("LA").convert("La")
        for step in (256, 257):
            yield Image.fromarray(picture.astype(np.uint16) * step)
            yield Image.fromarray(picture.astype(np.int32) * step)
            yield Image.fromarray((picture.astype(np.uint16) * step).astype(">u2"))
        yield image.convert("F")
        if set(np.unique(picture)) <= {0, 255}:
            yield image.convert("1")
    yield from (colour.convert(mode) for mode in ("CMYK", "YCbCr", "LAB", "HSV"))


def _without_loss(picture: Any) -> Iterator[tuple[str, str, bytes]]:
    """(format, mode, file)."""
    Image.init()
    for image, kind in itertools.product(modes(picture), sorted(set(Image.SAVE) - LOSSY)):
        if image.mode not in EXACT.get(kind, {image.mode}):
            continue
        if kind == "GIF" and len(image.getcolors(2**16) or ()) > 256:
            continue
        for options in [{}, *OPTIONS.get(kind, [])]:
            with warnings.catch_warnings(), stderr_closed():  # on what they do not write
                warnings.simplefilter("ignore")
                try:
                    data = saved(image, kind, **ALWAYS.get(kind, {}), **options)
                except (OSError, ValueError, KeyError, TypeError, RuntimeError):
                    continue  # the writer has no such mode or option
            yield kind, image.mode, data


def stored(picture: Any) -> dict[str, bytes]:
    """A name to each file, once."""
    files = {}
    for n, (kind, mode, data) in enumerate(_without_loss(picture)):
        files[f"{n:03d}-{mode.replace(';', '_')}.{kind.lower()}"] = data
    for n in range(1, 9):
        exif = Image.Exif()
        exif[274] = n
        image = Image.fromarray(np.ascontiguousarray(turned(picture, n)))
        for kind in ("PNG", "TIFF", "WEBP"):
            more = ALWAYS.get(kind, {})
            files[f"turned-{n}.{kind.lower()}"] = saved(image, kind, exif=exif, **more)
    colour = 2 if picture.ndim == 3 else 0
    for depth, samples in ((8, picture), (16, picture.astype(np.uint16) * 257)):
        for interlaced in (False, True):
            made = png(samples, colour=colour, depth=depth, interlaced=interlaced)
            files[f"by-hand-{depth}-{interlaced}.png"] = made
    return files


def in_channels(picture: Any, channels: int) -> Any:
    image = Image.fromarray(picture).convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(*picture.shape[:2], channels).transpose(2, 0, 1)


def refusal(data: bytes, source: str, channels: int) -> str | None:
    try:
        decode(data, source, channels)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", PICTURES)
def test_same_pixels_or_a_refusal(name: str) -> None:
    picture, read = PICTURES[name], set()
    for file, data in stored(picture).items():
        mode, kind = file.split("-")[1].split(".")[0], file.rpartition(".")[2].upper()
        for channels in (1, 3):
            refused = refusal(data, file, channels)
            if refused is not None:
                assert refused.startswith(f"{file}: ")
                assert kind not in READ or mode not in PLAIN, refused
                continue
            got = decode(data, file, channels)
            assert np.array_equal(got, in_channels(picture, channels)), file
            read.add(kind)
    assert read == (READ - {"GIF"} if name == "colour" else READ)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "MPO"])
def test_orientation_is_applied_once(kind: str) -> None:
    """Of a lossy file, too: the pixels that are stored, turned."""
    more: dict[str, Any] = {}
    if kind == "MPO":
        more = {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}
    for n in range(1, 9):
        exif = Image.Exif()
        exif[274] = n
        image = Image.fromarray(COLOUR[:24])
        data = saved(image, kind, exif=exif, **more)
        with Image.open(io.BytesIO(saved(image, "JPEG" if kind == "MPO" else kind))) as plain:
            as_stored = np.asarray(plain)
        got = decode(data, "here", 3).transpose(1, 2, 0)
        assert got.shape[:2] == ((24, 32) if n < 5 else (32, 24))
        assert np.array_equal(turned(got, n), as_stored), (kind, n)


@pytest.fixture(scope="module", params=["digits", "cifar10-small"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained width-4 model."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = config.load(request.param, SMALL)
    with torch.random.fork_rng(devices=[]):
        weights = assembly.seeded_mixture(settings).state_dict()
    model_folder.save_model(
        Folder.at(folder), weights, settings, data_digest="none", metrics={"val_robust": 0.5}
    )
    return folder


def predict(model: Path, *images: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["predict", str(model), *map(str, images), "--json"])
    out, err = capfd.readouterr()
    code = end.value.code
    assert isinstance(code, int)
    return code, out, err


@pytest.mark.parametrize("name", ["black and white", "few"])
def test_predict_answers_the_same(
    name: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused, read = {}, {}
    for file, data in stored(PICTURES[name]).items():
        if refusal(data, file, 1):
            refused[file.rpartition(".")[2]] = tmp_path / file
        else:
            read[file] = tmp_path / file
        (tmp_path / file).write_bytes(data)
    capfd.readouterr()
    code, out, err = predict(model, *read.values(), capfd=capfd)
    assert (code, err) == (0, "")
    answers = json.loads(out)["predictions"]
    assert [answer["image"] for answer in answers] == [str(path) for path in read.values()]
    assert len({(a["label"], round(a["probability"], 6)) for a in answers}) == 1
    assert {"eps", "tga", "tiff", "ico"} & set(refused)
    for path in (refused[kind] for kind in ("eps", "tga", "tiff", "ico") if kind in refused):
        code, out, err = predict(model, path, capfd=capfd)
        assert (code, out) == (2, "")
        assert err.startswith(f"fmoe: {path}: ")
        assert err.count("\n") == 1


def test_predict_says_nothing_before_all_are_checked(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.png").write_bytes(png(COLOUR, colour=2))
    (tmp_path / "dog.png").write_bytes(png(COLOUR, colour=2)[:-20])
    with pytest.raises(SystemExit) as end:
        main(["predict", str(model), str(tmp_path / "cat.png"), str(tmp_path / "dog.png")])
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith(f"fmoe: {tmp_path / 'dog.png'}: ")
    assert err.count("\n") == 1
