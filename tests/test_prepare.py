"""`fmoe data prepare`: what is kept is replaced only by what was read and checked whole."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmoe import data
from fmoe.data import readers
from fmoe.data import sets as data_sets
from fmoe.errors import UserError
from fmoe.paths import home
from tests.published import (
    GOOD,
    TEST,
    TRAIN,
    X_TEST,
    Y_TEST,
    X,
    Y,
    encode,
    made,
    write_batches,
    write_hugging_face,
    write_hugging_face_of,
    write_mat,
    write_parquet,
)


def kept() -> dict[str, bytes]:
    """Every file of the home's data folder."""
    folder = home() / "data"
    return {
        str(file.relative_to(folder)): file.read_bytes() if file.is_file() else b""
        for file in sorted(folder.rglob("*"))
    }


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "data", "prepare", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_small_set_is_kept_and_the_refusal_is_trainings(tmp_path: Path) -> None:
    """40 images cannot give 5,000 for validation, and need not to be read."""
    write_hugging_face_of(tmp_path / "cifar10", 40, 20)
    done = command("cifar10", "--data-dir", str(tmp_path), "--json")
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["train"], answer["test"], answer["val"]) == (40, 20, None)
    assert answer["classes"] == list(data.info("cifar10").classes)
    assert answer["replaced"] is None
    loaded = data.load("cifar10", val_images=8)
    assert loaded.digest == answer["digest"]
    assert len(data.read("cifar10", "test")) == 20
    with pytest.raises(UserError, match=r"data\.val_images: 5000 .* 40 training images"):
        data.load("cifar10")


def test_what_was_replaced_is_said(tmp_path: Path) -> None:
    write_hugging_face_of(tmp_path / "big" / "cifar10", 40, 20)
    write_hugging_face(tmp_path / "small")
    before = data.prepare("cifar10", tmp_path / "big")
    assert before.before is None
    done = command("cifar10", "--data-dir", str(tmp_path / "small"))
    line = f"replaced 40 training images, 20 test images, digest {before.digest[:16]}"
    assert line in done.stdout.splitlines()
    now = data.load("cifar10", val_images=2)
    assert (len(now.train) + len(now.val), len(now.test)) == (TRAIN, TEST)
    done = command("cifar10", "--data-dir", str(tmp_path / "big"), "--json")
    replaced = json.loads(done.stdout.splitlines()[-1])["replaced"]
    assert replaced == {"train": TRAIN, "test": TEST, "digest": now.digest}


def test_a_set_too_small_to_train_on_replaces_none_that_can(tmp_path: Path) -> None:
    write_hugging_face_of(tmp_path / "cifar10", 40, 20)
    labels = torch.arange(5100) % 10
    images = torch.zeros(5100, 3, 32, 32, dtype=torch.uint8)
    readers.write_prepared(
        data.prepared_path("cifar10"), (images, labels), (images[:20].clone(), labels[:20].clone())
    )
    before = kept()
    done = command("cifar10", "--data-dir", str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "40 training images are too few" in line
    assert "cifar10.safetensors keeps 5100" in line
    assert kept() == before
    data.prepared_path("cifar10").unlink()
    assert command("cifar10", "--data-dir", str(tmp_path)).returncode == 0


def test_the_same_set_is_not_written_again(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "one")
    write_batches(tmp_path / "two", X, Y)
    data.prepare("cifar10", tmp_path / "one")
    written = data.prepared_path("cifar10").stat()
    assert data.prepare("cifar10", tmp_path / "two").before is None
    assert data.prepared_path("cifar10").stat().st_mtime_ns == written.st_mtime_ns


def test_damaged_file_is_replaced(tmp_path: Path) -> None:
    write_hugging_face(tmp_path)
    data.prepare("cifar10", tmp_path)
    file = data.prepared_path("cifar10")
    file.write_bytes(file.read_bytes()[:1000])
    done = command("cifar10", "--data-dir", str(tmp_path))
    assert "replaced a file that could not be read" in done.stdout
    assert len(data.read("cifar10", "train")) == TRAIN


BROKEN: dict[str, Callable[[Path], object]] = {
    "no test": lambda f: (f / "test-00000-of-00001.parquet").unlink(),
    "truncated test": lambda f: (f / "test-00000-of-00001.parquet").write_bytes(b"PAR1"),
    "labels of test": lambda f: write_parquet(
        f / "test-00000-of-00001.parquet", [encode(x) for x in X_TEST], [0, 1, 2, 10]
    ),
    "labels of train": lambda f: write_parquet(
        f / "train-00000-of-00001.parquet", [encode(X[0])], [-1]
    ),
    "a picture of train": lambda f: write_parquet(
        f / "train-00000-of-00001.parquet", [encode(X[0]), b"no picture"], [0, 1]
    ),
    "a shard": lambda f: (f / "train-00000-of-00001.parquet").rename(
        f / "train-00000-of-00002.parquet"
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_set_replaces_nothing_and_writes_nothing(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "cifar10"
    write_hugging_face(folder)
    BROKEN[kind](folder)
    with pytest.raises(UserError):
        data.prepare("cifar10", tmp_path)
    assert not (home() / "data").exists()
    write_hugging_face_of(tmp_path / "good", 12, 6)
    data.prepare("cifar10", tmp_path / "good")
    before = kept()
    with pytest.raises(UserError):
        data.prepare("cifar10", tmp_path)
    assert kept() == before


def test_killed_while_it_writes_the_old_file_stays(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "old")
    old = data.prepare("cifar10", tmp_path / "old").digest
    images = np.zeros((60_000, 3, 32, 32), np.uint8)  # 184 MB, so that writing takes a while
    write_batches(tmp_path / "new", images, [i % 10 for i in range(len(images))])
    arguments = ["data", "prepare", "cifar10", "--data-dir", str(tmp_path / "new")]
    process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments])
    folder = home() / "data"
    while process.poll() is None and not list(folder.glob(".cifar10.safetensors.*.tmp")):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(folder.glob(".cifar10.safetensors.*.tmp")), "killed while it wrote"
    assert data.load("cifar10", val_images=2).digest == old
    assert data.prepare("cifar10", tmp_path / "old").digest == old
    assert list(kept()) == ["cifar10.safetensors"]


def test_a_folder_that_somebody_writes_in_is_left(tmp_path: Path) -> None:
    folder = home() / "data"
    busy, left = (folder / f".cifar10.safetensors.{name}.tmp" for name in ("busy", "left"))
    busy.mkdir(parents=True)
    left.mkdir()
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    write_hugging_face(tmp_path)
    for _ in range(2):  # another set, and the same again
        data.prepare("cifar10", tmp_path)
        assert (busy.exists(), left.exists()) == (True, False)
        left.mkdir()
    os.close(lock)


def test_home_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    write_hugging_face(tmp_path)
    home().mkdir(parents=True, exist_ok=True)
    (home() / "data").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"data: cannot be written \("):
        data.prepare("cifar10", tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Site:
    """SVHN's site: a folder, served, in the place of the official one."""

    folder: Path
    url: str
    monkeypatch: pytest.MonkeyPatch

    def publish(self, parts: Any) -> None:
        """New files on the site, with their md5 where it is looked for."""
        write_mat(self.folder, parts)
        files = [self.folder / f"{part}_32x32.mat" for part in readers.PARTS]
        downloads = tuple(
            readers.Download(f"{self.url}/{file.name}", hashlib.md5(file.read_bytes()).hexdigest())
            for file in files
        )
        there = (data_sets.Digits(), data_sets.Svhn(downloads=downloads))
        self.monkeypatch.setattr(data_sets, "DATA_SETS", there)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Site(folder, f"http://127.0.0.1:{server.server_port}", monkeypatch)
        server.shutdown()


def test_download_is_kept_and_not_fetched_again(site: Site) -> None:
    site.publish(GOOD)
    prepared = data.prepare("svhn")
    assert data.load("svhn", val_images=2).digest == prepared.digest
    names = ["raw", "raw/svhn", "raw/svhn/test_32x32.mat", "raw/svhn/train_32x32.mat"]
    assert list(kept()) == [*names, "svhn.safetensors"]
    for file in site.folder.iterdir():
        file.unlink()
    assert data.prepare("svhn").digest == prepared.digest


@pytest.mark.parametrize("kind", ["another md5", "not there", "faulty labels"])
def test_broken_download_replaces_nothing(kind: str, site: Site) -> None:
    site.publish(GOOD)
    data.prepare("svhn")
    before = kept()
    site.publish({"train": made(20, 5), "test": (X_TEST, [1, 2, 3, 11])})
    if kind == "another md5":
        write_mat(site.folder, GOOD)
    elif kind == "not there":
        (site.folder / "test_32x32.mat").unlink()
    with pytest.raises(UserError):
        data.prepare("svhn")
    assert kept() == before


def test_new_download_replaces_the_old_one(site: Site) -> None:
    site.publish(GOOD)
    old = data.prepare("svhn").digest
    site.publish({"train": made(20, 5), "test": (X_TEST, Y_TEST)})
    new = data.prepare("svhn")
    assert new.before is not None
    assert (new.before.digest, new.before.train, len(new.train)) == (old, TRAIN, 20)
    assert (home() / "data" / "raw" / "svhn" / "train_32x32.mat").read_bytes() == (
        site.folder / "train_32x32.mat"
    ).read_bytes()


def test_help_lists_the_layouts() -> None:
    text = " ".join(command("--help").stdout.split())
    for layout in ("0000.parquet", "plain_text", "cifar-10-python.tar.gz", "_32x32.mat"):
        assert layout in text
