"""CIFAR-100 in the official format and as the Hugging Face hub has it: the fine labels are read."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision

from fmoe import assembly, config, data
from fmoe.data import sets as data_sets
from fmoe.errors import UserError
from tests.conftest import SMALL
from tests.published import IMG, encode, made, write_batches

CLASSES = list(data.info("cifar100").classes)
FINE = {"train": [99, 0, 26, 50, 7, 7], "test": [1, 98, 26]}
COARSE = {"train": [0, 1, 2, 3, 4, 5], "test": [19, 0, 1]}
PIXELS = {part: made(len(labels), seed)[0] for seed, (part, labels) in enumerate(FINE.items())}


def python2(pickled: bytes) -> bytes:
    """Text as Python 2, which wrote the published files, pickles its strings."""
    for word in ("data", "fine_labels", "coarse_labels", "fine_label_names", *CLASSES):
        text = word.encode()
        pickled = pickled.replace(
            b"X" + struct.pack("<I", len(text)) + text, b"U" + bytes([len(text)]) + text
        )
    return pickled


def write_pickles(inner: Path) -> None:
    """`train`, `test` and `meta`, with Python 2's strings."""
    inner.mkdir(parents=True, exist_ok=True)
    for part, labels in FINE.items():
        batch = {
            "filenames": [f"{i}.png" for i in range(len(labels))],
            "batch_label": f"{part} batch 1 of 1",
            "fine_labels": labels,
            "coarse_labels": COARSE[part],
            "data": PIXELS[part].reshape(len(labels), 3072),
        }
        (inner / part).write_bytes(python2(pickle.dumps(batch, 2)))
    meta = {"fine_label_names": CLASSES, "coarse_label_names": ["fish"] * 20}
    (inner / "meta").write_bytes(python2(pickle.dumps(meta, 2)))
    (inner / "file.txt~").write_text("")  # as the published archive has it


def write_official(folder: Path) -> None:
    write_pickles(folder / "cifar-100-python")


def write_archive(folder: Path) -> None:
    write_official(folder)
    inner = folder / "cifar-100-python"
    with tarfile.open(folder / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(inner, inner.name)
    shutil.rmtree(inner)


def write_hub(folder: Path, pattern: str = "cifar100/cifar100/{}-00000-of-00001.parquet") -> None:
    """As the hub has it, with its "cra" for a crab."""
    names = ["cra" if name == "crab" else name for name in CLASSES]
    metadata = {"info": {"features": {"fine_label": {"names": names}}}}
    for part, labels in FINE.items():
        file = folder / pattern.format(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        cells = [{"bytes": encode(image), "path": None} for image in PIXELS[part]]
        columns: dict[str, Any] = {"img": pa.array(cells, IMG), "fine_label": labels}
        table = pa.table(columns | {"coarse_label": COARSE[part]})
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(metadata)}), file)


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "folder": write_official,
    "archive": write_archive,
    "inner folder": write_pickles,
    "named folder": lambda folder: write_official(folder / "cifar100"),
    "hub": write_hub,
    "hub, converted": lambda folder: write_hub(folder, "{}/0000.parquet"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fine_labels_are_read(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    loaded = data.load("cifar100", tmp_path, val_images=2)
    assert torch.equal(loaded.test.images, torch.from_numpy(PIXELS["test"]))
    assert loaded.test.labels.tolist() == FINE["test"]
    train = data.read("cifar100", "train", tmp_path)
    assert torch.equal(train.images, torch.from_numpy(PIXELS["train"]))
    assert train.labels.tolist() == FINE["train"]
    prepared = data.prepare("cifar100", tmp_path)
    assert prepared.digest == data.load("cifar100", val_images=2).digest == loaded.digest


def test_files_and_digests_are_torchvisions() -> None:
    theirs, ours = torchvision.datasets.CIFAR100, data_sets.Cifar100()
    (download,) = ours.downloads
    assert (download.url, download.file, download.md5) == (
        *(theirs.url, theirs.filename),
        theirs.tgz_md5,
    )
    assert (ours.pickles.folder, ours.pickles.archive) == (theirs.base_folder, theirs.filename)
    assert (ours.pickles.meta, ours.pickles.names) == (theirs.meta["filename"], theirs.meta["key"])
    assert [*ours.pickles.train] == [name for name, _ in theirs.train_list]
    assert [*ours.pickles.test] == [name for name, _ in theirs.test_list]


def without_fine_labels(folder: Path) -> None:
    write_hub(folder)
    for file in folder.rglob("*.parquet"):
        pq.write_table(pq.read_table(file).rename_columns(["img", "label", "coarse_label"]), file)


def beyond(folder: Path) -> None:
    write_official(folder)
    batch = {"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100], "coarse_labels": [0]}
    (folder / "cifar-100-python" / "test").write_bytes(pickle.dumps(batch, 2))


def coarse(folder: Path) -> None:
    write_official(folder)
    batch = {"data": np.zeros((1, 3072), np.uint8), "coarse_labels": [0]}
    (folder / "cifar-100-python" / "test").write_bytes(pickle.dumps(batch, 2))


def another_order(folder: Path) -> None:
    write_official(folder)
    meta = {"fine_label_names": CLASSES[::-1]}
    (folder / "cifar-100-python" / "meta").write_bytes(pickle.dumps(meta, 2))


def cifar10(folder: Path) -> None:
    write_batches(folder, np.zeros((5, 3, 32, 32), np.uint8), [0] * 5)


class Harm:
    """A pickle that would call something."""

    def __reduce__(self) -> Any:
        return print, ("ran",)


def harmful(folder: Path) -> None:
    write_official(folder)
    (folder / "cifar-100-python" / "test").write_bytes(pickle.dumps(Harm(), 2))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "another column": (
        without_fine_labels,
        r"no column `fine_label` \(has: img, label, coarse_label\), and cifar100 has one",
    ),
    "beyond": (beyond, r"cifar-100-python/test: labels must lie in 0\.\.99, not 100\.\.100"),
    "coarse alone": (coarse, r"not a CIFAR-100 batch \(no list `fine_labels` \(has: data, coarse"),
    "another order": (another_order, r"meta: label names are worm, woman, .*cifar100 has apple"),
    "CIFAR-10": (cifar10, r"holds no cifar100: expected .*published cifar-100-python\.tar\.gz"),
    "harm": (harmful, r"not a CIFAR-100 batch \(holds '__builtin__\.print'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_files_are_refused_by_name(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, message = WRONG[kind]
    write(tmp_path)
    with pytest.raises(UserError, match=message):
        data.read("cifar100", "test", tmp_path)
    assert capsys.readouterr().out == ""


def test_cifar10_is_not_read_out_of_it(tmp_path: Path) -> None:
    write_official(tmp_path)
    with pytest.raises(UserError, match="holds no cifar10"):
        data.read("cifar10", "test", tmp_path)
    write_hub(tmp_path)
    with pytest.raises(UserError, match="holds no cifar10"):
        data.read("cifar10", "test", tmp_path / "cifar100")


def test_an_unfinished_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz.part").write_bytes(b"")
    with pytest.raises(UserError, match=r"tar\.gz\.part: an unfinished download"):
        data.read("cifar100", "test", tmp_path)


def test_a_batch_may_be_as_large_as_the_published_one() -> None:
    assert data_sets.Cifar100().pickles.most_bytes > 50_000 * 3072


def test_a_recipe_names_it_and_the_model_has_100_classes() -> None:
    settings = config.load("cifar10", [*SMALL, "data.name=cifar100"])
    model = assembly.seeded_mixture(settings).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 100)
