"""Storage, leases and the expert store on a real S3 API: moto's server on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from PIL import Image

from fmoe import data
from fmoe.config import Config
from fmoe.data import Data, own
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.data.making import make
from fmoe.data.streamed import Streamed
from fmoe.errors import UserError
from fmoe.storage import folder as storage
from fmoe.storage import lease
from fmoe.storage.folder import Folder
from fmoe.storage.lease import Held, exclusive
from fmoe.training.expert_store import ExpertStore

MEMBER = ("benign", 0)


@dataclass(frozen=True)
class S3:
    address: str
    outage: Path

    def folder(self, name: str) -> Folder:
        return Folder.at(
            f"s3://bucket/{name}?endpoint_override={self.address}&scheme=http&region=us-east-1"
        )


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outage = tmp_path_factory.mktemp("s3") / "outage"
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.s3_server", "127.0.0.1", str(port), str(outage)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true"}
    deadline = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    yield S3(f"127.0.0.1:{port}", outage)
    server.terminate()
    server.wait()


def test_folder_on_s3(s3: S3) -> None:
    folder = s3.folder("plain") / "deep"
    assert folder.names() == []
    assert folder.manifest() is None
    folder.commit({"a": b"x" * 1000, "b": b""}, {"key": "k"})
    manifest = folder.manifest()
    assert manifest is not None
    assert folder.committed("a", manifest) == b"x" * 1000
    assert folder.names() == ["a", "b", "manifest.json"]
    assert (s3.folder("plain")).names() == ["deep"]
    folder.delete_file("b")
    folder.delete_file("b")
    with pytest.raises(FileNotFoundError):
        folder.read("b")
    folder.delete()
    assert folder.names() == []


def test_patient_folder_waits_out_an_outage(s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    folder = s3.folder("outage")
    folder.write("a", b"1")
    s3.outage.touch()
    try:
        with pytest.raises(OSError, match=r"503|SERVICE_UNAVAILABLE"):
            folder.read("a")
        with ThreadPoolExecutor() as threads:
            reads = threads.submit(folder.patient().read, "a")
            writes = threads.submit(folder.patient().write, "b", b"2")
            deadline = time.monotonic() + 30
            while "trying again" not in caplog.text:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            s3.outage.unlink()
            assert reads.result(60) == b"1"
            writes.result(60)
    finally:
        s3.outage.unlink(missing_ok=True)
    assert folder.read("b") == b"2"


def test_what_is_final_is_not_waited_for(s3: S3) -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        s3.folder("none").patient().read("a")
    nowhere = Folder.at(s3.folder("x").uri.replace("bucket", "no-such-bucket")).patient()
    with pytest.raises(OSError, match="bucket"):
        nowhere.write("a", b"")
    assert time.monotonic() - start < 5


def test_one_holder_at_a_time(s3: S3) -> None:
    """Three threads add to a number that is read and written apart."""
    folder = s3.folder("counted")
    folder.write("number", b"0")

    def add(_: int) -> None:
        with exclusive(folder, "lock", wait=True):
            number = int(folder.read("number"))
            time.sleep(0.2)
            folder.write("number", str(number + 1).encode())

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(add, range(3)))
    assert folder.read("number") == b"3"
    assert (folder / "lock.lease").names() == []


def test_living_holder_is_told_from_a_dead_one(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    monkeypatch.setattr(lease, "BEAT_SECONDS", 1.0)
    monkeypatch.setattr(lease, "STALE_AFTER", timedelta(seconds=3))
    folder = s3.folder("held")
    with (
        exclusive(folder, "lock", wait=False),
        pytest.raises(Held),
        exclusive(folder, "lock", wait=False),
    ):
        raise AssertionError("two hold the lease")
    # a holder that was killed: its claim is there and beats no more
    (folder / "lock.lease").write("0dead.claim", b"")
    (folder / "lock.lease").write("0dead.beat", b"")
    time.sleep(1.1)  # older by the store's clock
    with exclusive(folder, "lock", wait=False):
        assert "0dead.claim" not in (folder / "lock.lease").names()


def test_arrow_puts_without_a_condition(s3: S3) -> None:
    """It says nothing and overwrites. Where this fails, a lease may be a conditional put."""
    filesystem, path = s3.folder("condition").resolve()
    for content in (b"first", b"second"):
        with filesystem.open_output_stream(path, metadata={"If-None-Match": "*"}) as stream:
            stream.write(content)
    assert filesystem.open_input_stream(path).read() == b"second"


def test_two_writers_train_an_expert_once(s3: S3, small: Config, digits: Data) -> None:
    store = ExpertStore(s3.folder("experts"))
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: store.obtain(small, MEMBER, digits), range(2)))
    assert sorted(manifest["trained"] for manifest in found) == [False, True]
    assert found[0]["sha256"] == found[1]["sha256"]
    assert set(store.weights(found[0]["key"])) > {"conv.weight"}


def test_full_disk_is_a_passing_fault() -> None:
    assert storage.passing(OSError(28, "No space left on device"))
    assert not storage.passing(PermissionError(13, "Permission denied"))
    assert not storage.passing(OSError("AWS Error ACCESS_DENIED during PutObject operation"))


def test_data_sets_are_kept_there_and_read_from_there(s3: S3, tmp_path: Path) -> None:
    """A set of the user's own and a known one, by `--to` and `--data-dir`."""
    for number in range(30):
        file = tmp_path / "all" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 8 * number, np.uint8)).save(file)
    place = s3.folder("data").uri
    made = make(tmp_path / "all", "greys", to=place)
    assert made.own.folder.uri.startswith("s3://bucket/data/greys?")
    loaded = data.load("greys", place)
    assert loaded.digest == made.own.about.digest
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [20, 4, 6]
    assert "greys" in [one.name for one in own.listed(place)]
    whole = data.prepare("digits", to=place)
    assert own.find("digits", place) is not None
    assert data.load("digits", place).digest == whole.digest
    with pytest.raises(UserError, match=r"unknown data set 'none' \(there are: .*, greys\)"):
        data.load("none", place)
    with pytest.raises(UserError, match=r"holds no cifar10; `fmoe data prepare cifar10 --to s3"):
        data.load("cifar10", place)


def test_data_are_streamed_from_s3(s3: S3, tmp_path: Path) -> None:
    """A set that is prepared there is trained on from there: the same images as of a local one."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (66, 3, 4, 4), np.uint8)
    labels = np.arange(66) % 3
    train, test = slice(60), slice(60, 66)
    np.savez(
        tmp_path / "a.npz",
        x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test],
    )  # fmt: skip
    place = s3.folder("data")
    made = make(tmp_path / "a.npz", "numbers", to=place.uri)
    assert made.own.folder.names()[0] == "set.json"
    there = data.load("numbers", place.uri, val_images=6, stream=True)
    make(tmp_path / "a.npz", "numbers")
    here = data.load("numbers", val_images=6)
    assert isinstance(there.train, Streamed)
    assert (there.digest, there.train_digest) == (here.digest, here.train_digest)
    batches = (Batches(part, 9, Augment(crop=1), 0) for part in (there.train, here.train))
    for (x, y), (wanted_x, wanted_y) in zip(*(each.epoch(0) for each in batches), strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)
