"""Data sets in every layout in which they are published, written here for the readers' tests."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from fmoe import data
from fmoe.data.readers import Part

IMG = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TRAIN, TEST = 10, 4
Pixels = NDArray[np.uint8]
Parts = dict[Part, tuple[Any, Any]]
"""Images [N,3,32,32] and labels of each part that is written; of any type, for the faulty ones."""


def made(count: int, seed: int) -> tuple[Pixels, list[int]]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return images, [i % 10 for i in range(count)]


X, Y = made(TRAIN, 0)
X_TEST, Y_TEST = made(TEST, 1)
GOOD: Parts = {"train": (X, Y), "test": (X_TEST, Y_TEST)}


def encode(image: Pixels, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(stream, kind)
    return stream.getvalue()


def write_parquet(
    file: Path, encoded: list[bytes], labels: Any, column: str = "img", metadata: Any = None
) -> None:
    """labels: a list or an arrow array of any kind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": image, "path": None} for image in encoded]
    if isinstance(labels, list) and {type(label) for label in labels} == {int}:
        labels = np.array(labels)  # unsigned where they must be
    table = pa.table({column: pa.array(cells, IMG), "label": pa.array(labels)})
    pq.write_table(table.replace_schema_metadata(metadata), file)


def write_hugging_face(folder: Path, shards: int = 1) -> None:
    """`{train,test}-00000-of-00002.parquet` and so on, rows in order."""
    for part, (images, labels) in GOOD.items():
        for shard in range(shards):
            rows = slice(shard * len(labels) // shards, (shard + 1) * len(labels) // shards)
            write_parquet(
                folder / f"{part}-{shard:05d}-of-{shards:05d}.parquet",
                [encode(image) for image in images[rows]],
                labels[rows],
            )


def write_hugging_face_of(folder: Path, train: int, test: int) -> None:
    """Random images, as many as are wanted."""
    for part, count, seed in (("train", train, 2), ("test", test, 3)):
        images, labels = made(count, seed)
        file = folder / f"{part}-00000-of-00001.parquet"
        write_parquet(file, [encode(image) for image in images], labels)


def write_batches(
    folder: Path, images: Pixels, labels: Any, inner: str = "cifar-10-batches-py"
) -> None:
    """torchvision's layout: five training batches and one of tests."""
    write_batch_files(folder / inner, {"train": (images, labels), "test": (X_TEST, Y_TEST)})


def write_batch_files(inner: Path, parts: Parts, protocol: int = 2) -> None:
    inner.mkdir(parents=True, exist_ok=True)
    batches = {"test_batch": parts["test"]} if "test" in parts else {}
    if "train" in parts:
        images, labels = parts["train"]
        size = len(labels) // 5
        for i in range(5):
            rows = slice(i * size, (i + 1) * size)
            batches[f"data_batch_{i + 1}"] = (images[rows], labels[rows])
    for name, (x, y) in batches.items():
        flat = x.reshape(len(x), x[0].size if len(x) else 3072)
        batch = {"batch_label": name, "data": flat, "labels": y, "filenames": []}
        (inner / name).write_bytes(pickle.dumps(batch, protocol=protocol))


def write_archive(folder: Path, parts: Parts) -> None:
    """`cifar-10-python.tar.gz` alone."""
    inner = folder / "cifar-10-batches-py"
    write_batch_files(inner, parts)
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(inner, inner.name)
    for file in inner.iterdir():
        file.unlink()
    inner.rmdir()


def write_svhn(folder: Path, images: Pixels = X, labels: list[int] = Y) -> None:
    """The official format: X [32,32,3,N] uint8, y [N,1] uint8 with 10 for the digit 0."""
    write_mat(folder, {"train": (images, labels), "test": (X_TEST, Y_TEST)})


def write_mat(folder: Path, parts: Parts) -> None:
    """Labels that are a list of integers get SVHN's 10 for 0; a list becomes a column."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (x, y) in parts.items():
        if isinstance(y, list):
            if all(type(label) is int for label in y):
                y = [label or 10 for label in y]
            y = np.array(y)[:, None]
            y = y.astype(np.uint8) if y.dtype == np.int64 and 0 < y.min() <= y.max() < 256 else y
        content = {"X": np.ascontiguousarray(x.transpose(2, 3, 1, 0)), "y": y}
        scipy.io.savemat(folder / f"{part}_32x32.mat", content, do_compression=True)


def write_kept(parts: Parts) -> None:
    """As `fmoe data prepare cifar10` keeps it."""
    file = data.prepared_path("cifar10")
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, (x, y) in parts.items():
        end = "" if part == "train" else "_test"
        arrays[f"x{end}"] = np.ascontiguousarray(x)
        arrays[f"y{end}"] = np.array(y)
    save_file(arrays, file)


def _parquet(pattern: str, column: str = "img") -> Callable[[Path, Parts], None]:
    """Two shards of each part where the pattern has an `{index}`, or else one."""

    def write(folder: Path, parts: Parts) -> None:
        for part, (x, y) in parts.items():
            shards = 2 if "{index" in pattern else 1
            for index in range(shards):
                rows = slice(index * len(y) // shards, (index + 1) * len(y) // shards)
                file = folder / pattern.format(part=part, index=index)
                write_parquet(file, [encode(image) for image in x[rows]], y[rows], column)

    return write


@dataclass(frozen=True)
class Published:
    """A layout. file: of a part, for tests that spoil it; arrays: not pictures but arrays."""

    name: str
    write: Callable[[Path, Parts], None]
    file: str
    arrays: bool = False

    def spoiled(self, folder: Path, part: Part) -> Path:
        if self.file == "kept":
            return data.prepared_path("cifar10")
        batch = "data_batch_3" if part == "train" else "test_batch"
        return folder / self.file.format(part=part, batch=batch)

    def read(self, folder: Path, part: Part) -> data.Split:
        return data.read(self.name, part, None if self.file == "kept" else folder)


FLAT = "{part}-{index:05d}-of-00002.parquet"
SECOND = "{part}-00001-of-00002.parquet"
LAYOUTS = {
    "flat": Published("cifar10", _parquet(FLAT), SECOND),
    "named folder": Published("cifar10", _parquet(f"cifar10/{FLAT}"), f"cifar10/{SECOND}"),
    "plain_text": Published("cifar10", _parquet(f"plain_text/{FLAT}"), f"plain_text/{SECOND}"),
    "cropped_digits": Published(
        "svhn", _parquet(f"svhn/cropped_digits/{FLAT}", "image"), f"svhn/cropped_digits/{SECOND}"
    ),
    "hashed": Published(
        "svhn",
        _parquet("data/{part}-{index:05d}-of-00002-0a1b2c3d4e5f607{index}.parquet", "image"),
        "data/{part}-00001-of-00002-0a1b2c3d4e5f6071.parquet",
    ),
    "converted": Published(
        "cifar10",
        _parquet("plain_text/{part}/{index:04d}.parquet"),
        "plain_text/{part}/0000.parquet",
    ),
    "old name": Published(
        "cifar10",
        _parquet("plain_text/cifar10-{part}.parquet"),
        "plain_text/cifar10-{part}.parquet",
    ),
    "archive": Published("cifar10", write_archive, "cifar-10-python.tar.gz", arrays=True),
    "batches": Published(
        "cifar10",
        lambda folder, parts: write_batch_files(folder / "cifar-10-batches-py", parts),
        "cifar-10-batches-py/{batch}",
        arrays=True,
    ),
    "inner folder": Published("cifar10", write_batch_files, "{batch}", arrays=True),
    "mat": Published("svhn", write_mat, "{part}_32x32.mat", arrays=True),
    "prepared": Published("cifar10", lambda _, parts: write_kept(parts), "kept", arrays=True),
}
