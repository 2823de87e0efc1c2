"""Every file format a data set comes in, written here and read through `fmoe.data.load`."""

from __future__ import annotations

import io
import os
import pickle
import struct
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from fmoe import data
from fmoe.data import Data, readers
from fmoe.errors import UserError
from fmoe.paths import home
from tests.published import (
    IMG,
    TRAIN,
    X_TEST,
    Y_TEST,
    X,
    Y,
    encode,
    write_batches,
    write_hugging_face,
    write_parquet,
    write_svhn,
)


def load(folder: Path) -> Data:
    return data.load("cifar10", folder, val_images=2)


def test_another_data_sets_own_folder_is_none_of_it(tmp_path: Path) -> None:
    """The pictures have the same size: nothing else would tell."""
    folder = tmp_path / "cifar10"
    write_hugging_face(folder)
    assert len(data.load("cifar10", folder, val_images=2).train) == TRAIN - 2
    with pytest.raises(UserError, match="holds no svhn"):
        data.load("svhn", folder, val_images=2)


def test_parquet_gives_the_written_pixels_and_labels(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "cifar10")
    train, test = (data.read("cifar10", part, tmp_path) for part in readers.PARTS)
    for split, x, y in ((train, X, Y), (test, X_TEST, Y_TEST)):
        assert torch.equal(split.images, torch.from_numpy(x))
        assert split.labels.tolist() == y


def test_digest_does_not_depend_on_the_file_layout(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "one" / "cifar10")
    write_hugging_face(tmp_path / "two" / "cifar10", shards=2)
    write_hugging_face(tmp_path / "flat", shards=3)  # --data-dir may be the folder itself
    write_batches(tmp_path / "batches", X, Y)
    write_batches(tmp_path / "inner" / "cifar10", X, Y)
    digests = {load(folder).digest for folder in tmp_path.iterdir()}
    x, y = torch.from_numpy(X), torch.tensor(Y)
    expected = data.digest(
        data.Split(x, y), data.Split(torch.from_numpy(X_TEST), torch.tensor(Y_TEST))
    )
    assert digests == {expected}


def test_validation_split_does_not_depend_on_the_file_layout(tmp_path: Path) -> None:
    write_hugging_face(tmp_path / "parquet", shards=2)
    write_batches(tmp_path / "batches", X, Y)
    one, two = load(tmp_path / "parquet"), load(tmp_path / "batches")
    assert torch.equal(one.val.images, two.val.images)
    assert torch.equal(one.train.images, two.train.images)
    assert (len(one.train), len(one.val), len(one.test)) == (8, 2, 4)


@pytest.mark.parametrize("layout", ["parquet", "batches", "svhn"])
def test_training_data_are_read_without_the_test_files(layout: str, tmp_path: Path) -> None:
    if layout == "parquet":
        write_hugging_face(tmp_path)
        test = tmp_path / "test-00000-of-00001.parquet"
    elif layout == "batches":
        write_batches(tmp_path, X, Y)
        test = tmp_path / "cifar-10-batches-py" / "test_batch"
    else:
        write_svhn(tmp_path)
        test = tmp_path / "test_32x32.mat"
    name = "svhn" if layout == "svhn" else "cifar10"
    whole = data.load(name, tmp_path, val_images=2)
    assert test.exists()
    for spoil in (lambda: test.write_bytes(b"damaged"), test.unlink):
        spoil()
        part = data.load_training(name, tmp_path, val_images=2)
        assert torch.equal(part.train.images, whole.train.images)
        assert torch.equal(part.val.labels, whole.val.labels)
        assert (
            part.train_digest
            == whole.train_digest
            == data.digest(data.read(name, "train", tmp_path))
        )
        assert not hasattr(part, "test")
        with pytest.raises(UserError):
            data.load(name, tmp_path, val_images=2)


def test_data_folder_of_the_environment_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_hugging_face(tmp_path / "cifar10")
    monkeypatch.setenv("FMOE_DATA_DIR", str(tmp_path))
    assert data.load("cifar10", val_images=2).digest == load(tmp_path).digest


def test_jpeg_and_grey_images_are_read_as_rgb(tmp_path: Path) -> None:
    grey = io.BytesIO()
    Image.new("L", (32, 32), 7).save(grey, "PNG")
    flat = np.full((3, 32, 32), 100, np.uint8)
    for part in ("train", "test"):
        cells = [grey.getvalue(), encode(flat, "JPEG"), encode(flat)]
        write_parquet(tmp_path / f"{part}-0.parquet", cells, [0, 1, 2])
    train = data.read("cifar10", "train", tmp_path)
    assert train.images.shape == (3, 3, 32, 32)
    assert (train.images[0] == 7).all()
    assert (train.images[1].int() - 100).abs().max() <= 2  # JPEG loses a little
    assert (train.images[2] == 100).all()


def fault(file: Path, table: Any) -> None:
    pq.write_table(table, file)


def cells(count: int = 1) -> Any:
    return pa.array([{"bytes": encode(X[0]), "path": None}] * count, IMG)


LABEL = pa.array([0], pa.int64())
PARQUET_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no label": (lambda f: fault(f, pa.table({"img": cells()})), "no column `label` .has: img"),
    "no img": (
        lambda f: fault(f, pa.table({"label": LABEL})),
        "no column `img` or `image` .has: label",
    ),
    "img of strings": (
        lambda f: fault(f, pa.table({"img": ["a.png"], "label": LABEL})),
        "column `img` is string, not struct<bytes, path> or bytes",
    ),
    "img without bytes": (
        lambda f: fault(f, pa.table({"img": [{"path": "a.png"}], "label": LABEL})),
        "not struct<bytes, path>",
    ),
    "label of strings": (
        lambda f: fault(f, pa.table({"img": cells(), "label": ["cat"]})),
        "column `label` is not of integers",
    ),
    "empty label": (
        lambda f: fault(f, pa.table({"img": cells(), "label": pa.array([None], pa.int64())})),
        "empty cells",
    ),
    "empty image": (lambda f: write_parquet(f, [encode(X[0]), b""], [0, 1]), "row 1: not"),
    "undecodable": (
        lambda f: write_parquet(f, [encode(X[0]), b"no picture"], [0, 1]),
        "row 1: not a readable image",
    ),
    "half an image": (
        lambda f: write_parquet(f, [encode(X[0])[:1500]], [0]),
        "row 0: not a readable image",
    ),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-50]), "not a readable Parquet file"),
    "cut at the start": (lambda f: f.write_bytes(f.read_bytes()[100:]), "not a readable Parquet"),
    "nothing": (lambda f: f.write_bytes(b""), "not a readable Parquet file"),
}


@pytest.mark.parametrize("kind", PARQUET_FAULTS)
def test_faulty_parquet_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    write_hugging_face(tmp_path, shards=2)
    file = tmp_path / "train-00001-of-00002.parquet"
    damage, message = PARQUET_FAULTS[kind]
    damage(file)
    with pytest.raises(UserError, match=f"{file.name}: .*{message}"):
        load(tmp_path)


def test_parquet_without_a_test_part_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "cifar10" / "train-0.parquet", [encode(X[0])], [0])
    with pytest.raises(UserError, match=r"cifar10: no test-\*\.parquet"):
        load(tmp_path)


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_hugging_face(tmp_path)
    odd = [encode(X[0]), encode(X[0][:, :16])]
    write_parquet(tmp_path / "train-00000-of-00001.parquet", odd, [0, 1])
    with pytest.raises(UserError, match=r"train-.*: row 1: a picture of 16x32 pixels, not 32x32"):
        load(tmp_path)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_hugging_face(tmp_path)
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [encode(X[0])], [10])
    with pytest.raises(UserError, match=r"train-.*parquet: labels must lie in 0\.\.9"):
        load(tmp_path)


def python_2_str(pickler: Any, value: bytes) -> None:
    pickler.write(b"T" + struct.pack("<i", len(value)) + value)  # the opcode BINSTRING


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2's `str`, as the published batches have them."""

    dispatch: ClassVar[dict[type, Any]] = {**pickle._Pickler.dispatch, bytes: python_2_str}


def test_batches_written_by_python_2_are_read(tmp_path: Path) -> None:
    """The official files: pickled by Python 2 with the numpy of its day."""
    write_batches(tmp_path, X, Y)
    expected = load(tmp_path)
    for file in (tmp_path / "cifar-10-batches-py").iterdir():
        batch = pickle.loads(file.read_bytes())
        stream = io.BytesIO()
        Python2Pickler(stream, protocol=2).dump({k.encode(): v for k, v in batch.items()})
        old = stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        assert b"numpy.core.multiarray\n_reconstruct\n" in old
        file.write_bytes(old)
    again = load(tmp_path)
    assert again.digest == expected.digest
    assert torch.equal(again.val.images, expected.val.images)


LABEL_KINDS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    **{kind: partial(np.array, dtype=kind) for kind in ("<i8", ">i8", "<u4", "int16", "uint8")},
}


@pytest.mark.parametrize("labels", LABEL_KINDS)
@pytest.mark.parametrize("key", [str, str.encode], ids=["text", "bytes"])
@pytest.mark.parametrize("protocol", range(6))
def test_batches_of_every_protocol_are_read(
    protocol: int, key: Callable[[str], Any], labels: str, tmp_path: Path
) -> None:
    """And read-only, and by columns, as numpy may lay them out."""
    frozen = X_TEST.reshape(-1, 3072).copy()
    frozen.flags.writeable = False
    for pixels in (X_TEST.reshape(-1, 3072), frozen, np.asfortranarray(frozen), frozen[::1, ::1]):
        batch = {"data": pixels, "labels": LABEL_KINDS[labels](Y_TEST), "filenames": ["a"] * 4}
        content = pickle.dumps({key(k): value for k, value in batch.items()}, protocol)
        (tmp_path / "test_batch").write_bytes(content)
        split = data.read("cifar10", "test", tmp_path)
        assert torch.equal(split.images, torch.from_numpy(X_TEST))
        assert split.labels.tolist() == Y_TEST


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("place", ["the batch itself", "in labels", "beside the data"])
def test_malicious_pickle_is_refused_and_not_run(place: str, tmp_path: Path) -> None:
    write_batches(tmp_path, X, Y)
    made_by_it, file = tmp_path / "made", tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch = pickle.loads(file.read_bytes())
    evil = Evil(made_by_it)
    bad = {
        "the batch itself": evil,
        "in labels": {**batch, "labels": [evil, 1]},
        "beside the data": {**batch, "more": evil},
    }[place]
    payload = pickle.dumps(bad, protocol=2)
    pickle.loads(payload)
    assert made_by_it.is_dir(), "the payload works where pickles are trusted"
    made_by_it.rmdir()
    file.write_bytes(payload)
    with pytest.raises(UserError, match=r"data_batch_3: not a CIFAR-10 batch .*mkdir"):
        load(tmp_path)
    assert not made_by_it.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02}q\x00(X\x04",
        b"no pickle at all",
        pickle.dumps([1, 2], protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 100), np.uint8), "labels": [0, 1]}, protocol=2),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": ["cat"]}, protocol=2),
    ],
    ids=["empty", "truncated", "text", "a list", "no labels", "wrong shape", "labels of strings"],
)
def test_damaged_batch_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    write_batches(tmp_path, X, Y)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError, match="data_batch_2: not a CIFAR-10 batch"):
        load(tmp_path)


def test_missing_batch_is_refused_by_name(tmp_path: Path) -> None:
    write_batches(tmp_path, X, Y)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch: no such file"):
        load(tmp_path)


@pytest.mark.parametrize("inner", [".", "svhn"])
def test_svhn_gives_the_written_pixels_and_labels(inner: str, tmp_path: Path) -> None:
    write_svhn(tmp_path / inner)
    train, test = (data.read("svhn", part, tmp_path) for part in readers.PARTS)
    assert torch.equal(train.images, torch.from_numpy(X))
    assert torch.equal(test.images, torch.from_numpy(X_TEST))
    assert train.labels.tolist() == list(range(10))  # the written 10 is the digit 0
    assert test.labels.tolist() == [0, 1, 2, 3]


def test_svhn_loads_with_a_validation_split(tmp_path: Path) -> None:
    write_svhn(tmp_path)
    loaded = data.load("svhn", tmp_path, val_images=3)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (7, 3, 4)


SVHN_FAULTS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "text": lambda f: f.write_text("not a mat file"),
    "empty": lambda f: f.write_bytes(b""),
    "no y": lambda f: scipy.io.savemat(f, {"X": X.transpose(2, 3, 1, 0)}),
    "X of two dimensions": lambda f: scipy.io.savemat(f, {"X": np.zeros((4, 4)), "y": [[1]]}),
}


@pytest.mark.parametrize("kind", SVHN_FAULTS)
def test_faulty_svhn_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    write_svhn(tmp_path)
    SVHN_FAULTS[kind](tmp_path / "test_32x32.mat")
    with pytest.raises(UserError, match=r"test_32x32\.mat: not an SVHN file"):
        data.load("svhn", tmp_path, val_images=3)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_no_network_is_a_users_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=rf"{name} could not be downloaded .*known.*--data-dir"):
        data.prepare(name)
    assert not list(home().rglob("*.safetensors"))


def test_unknown_name_cannot_be_prepared() -> None:
    with pytest.raises(UserError, match="unknown data set 'cifar'"):
        data.prepare("cifar")


def test_prepared_data_load_without_a_data_folder(tmp_path: Path) -> None:
    labels = [i % 10 for i in range(5005)]  # more than the 5,000 of the default validation split
    write_batches(tmp_path, np.zeros((5005, 3, 32, 32), np.uint8), labels)
    prepared = data.prepare("cifar10", tmp_path)
    assert data.prepared_path("cifar10").exists()
    assert [file.name for file in data.prepared_path("cifar10").parent.iterdir()] == [
        "cifar10.safetensors"
    ]
    loaded = data.load("cifar10")
    assert loaded.digest == prepared.digest
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (5, 5000, 4)
    assert torch.equal(loaded.test.images, torch.from_numpy(X_TEST))


def test_preparing_downloads_where_no_folder_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [i % 10 for i in range(5005)]

    fetched = []

    def published(url: str, root: str, filename: str, md5: str) -> None:
        fetched.append((url, filename, md5))
        if len(fetched) == 1:
            write_svhn(Path(root), np.zeros((5005, 3, 32, 32), np.uint8), labels)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", published)
    prepared = data.prepare("svhn")
    assert fetched == [tuple(torchvision.datasets.SVHN.split_list[part]) for part in readers.PARTS]
    assert data.load("svhn").digest == prepared.digest


def write_prepared() -> Path:
    file = data.prepared_path("cifar10")
    train = (torch.from_numpy(X), torch.tensor(Y))
    test = (torch.from_numpy(X_TEST), torch.tensor(Y_TEST))
    readers.write_prepared(file, train, test)
    return file


PREPARED_FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-10],
    "header alone": lambda content: content[:100],
    "empty": lambda content: b"",
    "without y": lambda content: content.replace(b'"y"', b'"z"'),
}


@pytest.mark.parametrize("kind", PREPARED_FAULTS)
def test_damaged_prepared_file_names_the_remedy(kind: str) -> None:
    file = write_prepared()
    assert data.load("cifar10", val_images=2).train.images.shape == (8, 3, 32, 32)
    file.write_bytes(PREPARED_FAULTS[kind](file.read_bytes()))
    with pytest.raises(
        UserError, match=r"cifar10\.safetensors: damaged.*run `fmoe data prepare` again"
    ):
        data.load("cifar10", val_images=2)


def test_given_folder_goes_before_prepared_data(tmp_path: Path) -> None:
    write_prepared()
    with pytest.raises(UserError, match="holds no cifar10"):
        load(tmp_path)
