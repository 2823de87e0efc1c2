"""Streamed data under Ray: read by tasks, trained to the bits that data in memory give."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fmoe.data import own, shards, streamed
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.data.making import make
from fmoe.data.streamed import Streamed
from fmoe.errors import UserError
from fmoe.on_ray.streaming import OnRay
from fmoe.on_ray.workers import Workers
from pipelines.training.run import Request, run
from tests.integration.conftest import TRAIN, Trained

IMAGES = 90


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> own.Own:
    """In files of eight images, three of which are a window."""
    monkeypatch.setenv("FMOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shards, "FILE_BYTES", 8 * 3 * 4 * 4)
    monkeypatch.setattr(streamed, "FILES_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "a.npz",
        x_train=rng.integers(0, 256, (IMAGES, 3, 4, 4), np.uint8),
        y_train=np.arange(IMAGES) % 3,
        x_test=rng.integers(0, 256, (6, 3, 4, 4), np.uint8),
        y_test=np.arange(6) % 3,
    )
    return make(tmp_path / "a.npz", "numbers").own


def seen(images: Streamed, rank: int = 0, first: int = 0) -> list[tuple[bytes, list[int]]]:
    batches = Batches(images, 7, Augment(), 0, rank, 2)
    return [(batch.x.numpy().tobytes(), batch.y.tolist()) for batch in batches.of_epoch(1, first)]


def test_tasks_give_the_same_in_the_same_order(ray_session: None, made: own.Own) -> None:
    alone = Streamed.of(made.shards("train"))
    on_ray = replace(alone, ahead=OnRay())
    for rank in (0, 1):
        assert seen(on_ray, rank) == seen(alone, rank)
    assert seen(on_ray, first=9) == seen(alone)[9:]


def test_a_damaged_file_is_named(ray_session: None, made: own.Own) -> None:
    assert made.folder.local is not None
    file = made.folder.local / made.about.parts["train"].files[5].file
    file.write_bytes(file.read_bytes()[:-1])
    images = replace(Streamed.of(made.shards("train")), ahead=OnRay())
    with pytest.raises(UserError, match="damaged: its sha256 is not that of the set") as caught:
        seen(images)
    assert str(caught.value).startswith(f"{file}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_streamed_run_is_that_of_memory(trained: Trained, tmp_path: Path) -> None:
    """All digits are one window: two workers and the expert pool end with the same weights."""
    overrides = tuple(flag.removeprefix("--set=") for flag in TRAIN)
    request = Request(
        "digits-whole",
        overrides=(*overrides, "data.stream=true"),
        workers=Workers(2, 2),
        name="streamed",
        storage=str(tmp_path),
    )
    answer = run(request)
    assert answer["digest"] == trained.answer["digest"]
    assert answer["test"] == trained.answer["test"]
    (copy,) = os.listdir(tmp_path / "streamed")
    assert copy.startswith("digits-")
