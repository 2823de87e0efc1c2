"""Every kind of picture through every reader of pictures: the right pixels, or a named refusal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fmoe import data
from fmoe.data.images import read_image
from fmoe.data.pictures import decode
from fmoe.errors import UserError
from tests.pictures_kinds import COLOUR, KINDS, Kind
from tests.pictures_made import png


def rgb(is_: Any) -> Any:
    """[3,H,W] as a model of colours sees it."""
    return np.broadcast_to(is_[..., None] if is_.ndim == 2 else is_, (32, 32, 3)).transpose(2, 0, 1)


def luminance(is_: Any) -> Any:
    """ITU-R 601 in 16-bit integers, [1,H,W]."""
    if is_.ndim == 2:
        return is_[None]
    weights = np.array([19595, 38470, 7471])
    return ((is_.astype(np.int64) @ weights + 0x8000) >> 16).astype(np.uint8)[None]


def near(got: Any, is_: Any, kind: Kind) -> None:
    """Bit for bit; what littleCMS computed, to one level."""
    assert got.shape == is_.shape
    assert np.abs(got.astype(int) - is_).max() <= ("linear" in kind.name or "with" in kind.name)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_decoder(kind: Kind) -> None:
    for channels, seen in ((3, rgb), (1, luminance)):
        if isinstance(kind.is_, str):
            with pytest.raises(UserError, match=rf"^here: .*{re.escape(kind.is_)}"):
                decode(kind.made(), "here", channels)
        else:
            got = decode(kind.made(), "here", channels)
            assert got.dtype == np.uint8
            near(got, seen(kind.is_), kind)


def test_predict_s_reader(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"  # whatever it is
    path.write_bytes(kind.made())
    if isinstance(kind.is_, str):
        with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: ") as refusal:
            read_image(path, (3, 32, 32))
        assert "\n" not in str(refusal.value)
    else:
        got = read_image(path, (3, 32, 32)).numpy()
        assert got.dtype == np.float32
        near(np.rint(got * 255).astype(np.uint8), rgb(kind.is_), kind)


def test_parquet_cells(kind: Kind, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    cells = [png(COLOUR, colour=2), kind.made()]
    for part in ("train", "test"):
        images = [{"bytes": cell, "path": None} for cell in cells]
        table = pa.table({"img": images, "label": pa.array([3, 7], pa.int64())})
        pq.write_table(table, folder / f"{part}-00000-of-00001.parquet")
    if isinstance(kind.is_, str):
        with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: row 1: ") as refusal:
            data.load("cifar10", tmp_path, val_images=1)
        assert "\n" not in str(refusal.value)
    else:
        test = data.load("cifar10", tmp_path, val_images=1).test
        assert test.labels.tolist() == [3, 7]
        near(test.images[1].numpy(), rgb(kind.is_), kind)
