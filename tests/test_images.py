"""A user's image file: channels, range, size, and what happens to a damaged one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from fmoe.data.images import read_image
from fmoe.errors import UserError

GREY, RGB = (1, 8, 8), (3, 32, 32)


def saved(path: Path, mode: str, size: tuple[int, int], colour: object) -> Path:
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("shape", [GREY, RGB, (3, 5, 9)])
@pytest.mark.parametrize(("mode", "white"), [("L", 255), ("RGB", (255,) * 3), ("RGBA", (255,) * 4)])
def test_any_mode_and_size_becomes_the_models_shape(
    shape: tuple[int, int, int], mode: str, white: object, tmp_path: Path
) -> None:
    image = read_image(saved(tmp_path / "a.png", mode, (40, 20), white), shape)
    assert image.shape == shape
    assert image.dtype == torch.float32
    assert torch.equal(image, torch.ones(shape))


def test_pixels_of_the_right_size_are_taken_as_they_are(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "RGB", (3, 2), (0, 0, 0))
    with Image.open(path) as image:
        image.putpixel((2, 0), (255, 102, 51))  # right column, upper row
        image.save(path)
    x = read_image(path, (3, 2, 3))
    assert x[:, 0, 2].tolist() == pytest.approx([1.0, 0.4, 0.2])  # 102/255 = 0.4, 51/255 = 0.2
    assert x.sum().item() == pytest.approx(1.6)


def test_grey_scale_is_the_luma_of_the_colours(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "RGB", (8, 8), (200, 100, 50))
    # ITU-R 601: 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 59.8 + 58.7 + 5.7 = 124.2
    assert read_image(path, GREY).flatten().tolist() == pytest.approx([124 / 255] * 64)


def test_resizing_is_bilinear_and_stays_in_range(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "L", (2, 1), 0)
    with Image.open(path) as image:
        image.putpixel((1, 0), 255)
        image.save(path)
    row = read_image(path, (1, 1, 4)).flatten()
    # centres of the four pixels lie at -0.25, 0.25, 0.75, 1.25 of the two: 0, 1/4, 3/4, 1
    assert row.tolist() == pytest.approx([0, 0.25, 0.75, 1], abs=0.5 / 255 + 1e-6)


def test_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png", GREY)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_damaged_image_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png: not a readable image"):
        read_image(path, GREY)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"half\.png: not a readable image"):
        read_image(path, GREY)


def test_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable image"):
        read_image(tmp_path, GREY)
