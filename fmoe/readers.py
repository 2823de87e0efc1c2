"""File formats in which data sets come, each to the arrays (images, labels) of train or of test.

images: uint8 [N,C,H,W]. A reader gives None where its files are not there, and raises `UserError`
with the file's name where they are damaged. Who reads train does not open test.
"""

from __future__ import annotations

import pickle
import urllib.error
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fmoe.errors import UserError, first_line
from fmoe.pictures import decode

Arrays = tuple[Any, Any]
Part = Literal["train", "test"]
PARTS: tuple[Part, Part] = ("train", "test")
DIGITS_TEST_IMAGES = 360


def digits(part: Part) -> Arrays:
    """scikit-learn's 8x8 scans, 0..16 scaled to 0..255; a fixed 360 of 1,797 are the test split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    order = np.random.RandomState(0).permutation(len(images))
    rows = order[:DIGITS_TEST_IMAGES] if part == "test" else order[DIGITS_TEST_IMAGES:]
    return images[rows], bunch.target[rows]


def parquet(folder: Path, part: Part) -> Arrays | None:
    """The Hugging Face layout: `img: struct<bytes, path>` (PNG or JPEG) and `label: int64`."""
    found = {name: sorted(folder.glob(f"{name}-*.parquet")) for name in ("train", "test")}
    if not any(found.values()):
        return None
    if not found[part]:
        raise UserError(f"{folder}: no {part}-*.parquet")
    return _parquet_files(found[part])


def _parquet_files(files: list[Path]) -> Arrays:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images, labels = [], []
    for file in files:
        try:
            table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{file}: not a readable Parquet file ({first_line(error)})") from None
        for column in ("img", "label"):
            if column not in table.column_names:
                raise UserError(
                    f"{file}: no column `{column}` (has: {', '.join(table.column_names)})"
                )
        kind = table.schema.field("img").type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise UserError(f"{file}: column `img` is {kind}, not struct<bytes, path>")
        if not pa.types.is_integer(table.schema.field("label").type):
            raise UserError(f"{file}: column `label` is not of integers")
        if table["img"].null_count or table["label"].null_count:
            raise UserError(f"{file}: empty cells in `img` or `label`")
        images += _decode(table["img"].combine_chunks().field("bytes").to_pylist(), file)
        labels.append(table["label"].to_numpy())
    if not images:
        raise UserError(f"{files[0].parent}: {files[0].name} and its like hold no rows")
    try:
        return np.stack(images), np.concatenate(labels)
    except ValueError:
        raise UserError(f"{files[0].parent}: images of different sizes") from None


def _decode(encoded: list[bytes], file: Path) -> list[np.ndarray]:
    def one(row: int) -> np.ndarray:
        return decode(encoded[row], f"{file}: row {row}", 3)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, range(len(encoded))))


class _ArraysOnly(pickle.Unpickler):
    """torchvision's CIFAR files are pickles of a dict with one array: nothing else is built."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"holds {module}.{name}, which is no image data")
        return super().find_class(module, name)


def cifar_batches(folder: Path, part: Part) -> Arrays | None:
    """torchvision's original `cifar-10-batches-py`."""
    inner = folder / "cifar-10-batches-py"
    if not inner.is_dir():
        return None
    images, labels = [], []
    for name in [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]:
        try:
            with (inner / name).open("rb") as stream:
                batch = _ArraysOnly(stream, encoding="latin1").load()
            images.append(np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch["labels"], dtype=np.int64))
        except Exception as error:  # noqa: BLE001 - a damaged pickle raises any kind
            raise UserError(f"{inner / name}: not a CIFAR-10 batch ({first_line(error)})") from None
    return np.concatenate(images), np.concatenate(labels)


def svhn_mat(folder: Path, part: Part) -> Arrays | None:
    """The official `{train,test}_32x32.mat`: X uint8 [32,32,3,N], y [N,1] in 1..10, 10 is 0."""
    from scipy.io import loadmat

    if not any((folder / f"{name}_32x32.mat").exists() for name in ("train", "test")):
        return None
    file = folder / f"{part}_32x32.mat"
    try:
        mat = loadmat(file)
        images, labels = mat["X"].transpose(3, 2, 0, 1), mat["y"].astype(np.int64).reshape(-1)
    except Exception as error:  # noqa: BLE001 - scipy raises many kinds for damaged files
        raise UserError(f"{file}: not an SVHN file ({first_line(error)})") from None
    return images, np.where(labels == 10, 0, labels)


def download(name: str, folder: Path) -> None:
    """The official files through torchvision, which checks their md5. Nothing for `digits`."""
    import torchvision

    try:
        if name == "cifar10":
            torchvision.datasets.CIFAR10(str(folder), train=True, download=True)
        elif name == "svhn":
            folder.mkdir(parents=True, exist_ok=True)
            for part in ("train", "test"):
                torchvision.datasets.SVHN(str(folder), split=part, download=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"{name} could not be downloaded ({first_line(error)}): no network? "
            "Give --data-dir with its files"
        ) from None


def write_prepared(file: Path, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> None:
    from safetensors.torch import save_file

    (x, y), (x_test, y_test) = train, test
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
    save_file({"x": x, "y": y, "x_test": x_test, "y_test": y_test}, aside)
    aside.replace(file)


def prepared(file: Path, part: Part) -> Arrays:
    from safetensors import SafetensorError, safe_open

    end = "" if part == "train" else "_test"
    try:
        with safe_open(file, "np") as kept:
            return kept.get_tensor(f"x{end}"), kept.get_tensor(f"y{end}")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: damaged ({first_line(error)}); run `fmoe data prepare` again"
        ) from None
