"""Readers x kinds of data: every layout read right, or refused in one line that names the file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
import torch

from fmoe import data
from fmoe.data import readers
from fmoe.data.readers import Part
from fmoe.errors import UserError
from tests.published import (
    GOOD,
    IMG,
    LAYOUTS,
    X_TEST,
    Y_TEST,
    X,
    Y,
    encode,
    write_archive,
    write_batch_files,
    write_batches,
    write_hugging_face,
    write_mat,
    write_parquet,
)

ARRAYS = [name for name, layout in LAYOUTS.items() if layout.arrays]


def refused(layout: str, folder: Path, part: Part) -> str:
    """The one line."""
    with pytest.raises(UserError) as caught:
        LAYOUTS[layout].read(folder, part)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_data_are_read(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout].write(tmp_path, GOOD)
    for part, (images, labels) in GOOD.items():
        split = LAYOUTS[layout].read(tmp_path, part)
        assert torch.equal(split.images, torch.from_numpy(images))
        assert split.labels.tolist() == labels
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)


@pytest.mark.parametrize("alone", readers.PARTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_part_alone_is_read_and_the_other_is_missed(
    layout: str, alone: Part, tmp_path: Path
) -> None:
    LAYOUTS[layout].write(tmp_path, {alone: GOOD[alone]})
    assert torch.equal(
        LAYOUTS[layout].read(tmp_path, alone).images, torch.from_numpy(GOOD[alone][0])
    )
    refused(layout, tmp_path, "test" if alone == "train" else "train")


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _dangle(file: Path) -> None:
    file.unlink()
    file.symlink_to("gone")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 123\n"
SPOILT: dict[str, Callable[[Path], object]] = {
    "missing": lambda f: f.unlink(),
    "truncated": _truncate,
    "last byte cut": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "empty": lambda f: f.write_bytes(b""),
    "text": lambda f: f.write_text("404: not found"),
    "a page": lambda f: f.write_text("<!DOCTYPE html><html>Log in</html>"),
    "LFS pointer": lambda f: f.write_bytes(LFS),
    "a pipe": _pipe,
    "a folder": _folder,
    "dangling link": _dangle,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", readers.PARTS)
def test_spoilt_file_is_refused_by_name(part: Part, layout: str, kind: str, tmp_path: Path) -> None:
    LAYOUTS[layout].write(tmp_path, GOOD)
    file = LAYOUTS[layout].spoiled(tmp_path, part)
    SPOILT[kind](file)
    message = refused(layout, tmp_path, part)
    whole_part = layout in ("old name", "archive", "prepared")  # nothing else tells of it
    if kind not in ("missing", "dangling link") or not whole_part:
        assert file.name in message or (kind == "missing" and "-*" in message)
    if kind == "LFS pointer":
        assert "git lfs pull" in message


LABELS: dict[str, list[Any]] = {
    "floats": [0.0, 1.0, 2.0, 3.0],
    "one float": [1, 2, 3, 4.0],
    "nan": [0.0, 1.0, 2.0, float("nan")],
    "complex": [0j, 1j, 2j, 3j],
    "booleans": [True, False, True, False],
    "text": ["0", "1", "2", "3"],
    "digits of text": ["cat", "dog", "cat", "dog"],
    "bytes": [b"0", b"1", b"2", b"3"],
    "tables": [[1], [2], [3], [4]],
    "pairs": [[1, 2], [2, 3], [3, 4], [4, 5]],
    "negative": [1, 2, 3, -1],
    "beyond": [1, 2, 3, 11],
    "2**32 beyond": [1, 2, 3, 2**32 + 1],
    "unsigned beyond": [1, 2, 3, 2**64 - 1],
    "missing one": [1, 2, 3, None],
    "one less": [1, 2, 3],
    "one more": [1, 2, 3, 4, 5],
    "none": [],
}
PARQUET = [name for name in LAYOUTS if name not in ARRAYS]
CANNOT = {
    *(("mat", kind) for kind in ("tables", "missing one")),
    *(("prepared", k) for k in ("text", "digits of text", "bytes", "complex", "missing one")),
    *((layout, kind) for layout in PARQUET for kind in ("complex", "one less", "one more")),
    *((layout, kind) for layout in PARQUET for kind in ("none", "one float")),
}
"""What a format cannot hold, and a table (SVHN's labels are a column)."""
CELLS = [(layout, kind) for layout in LAYOUTS for kind in LABELS if (layout, kind) not in CANNOT]


@pytest.mark.parametrize(("layout", "kind"), CELLS)
def test_labels_of_another_kind_are_refused(layout: str, kind: str, tmp_path: Path) -> None:
    LAYOUTS[layout].write(tmp_path, {"train": GOOD["train"], "test": (X_TEST, LABELS[kind])})
    message = refused(layout, tmp_path, "test")
    assert "test" in message
    assert torch.equal(LAYOUTS[layout].read(tmp_path, "train").labels, torch.tensor(Y))


IMAGES: dict[str, Any] = {
    "floats": X_TEST / 255,
    "floats of 0..255": X_TEST.astype(np.float32),
    "half": X_TEST.astype(np.float16),
    "nan": np.full(X_TEST.shape, np.nan),
    "booleans": X_TEST > 100,
    "signed bytes": X_TEST.astype(np.int8),
    "16 bits": X_TEST.astype(np.uint16),
    "64 bits": X_TEST.astype(np.int64),
    "complex": X_TEST.astype(np.complex64),
    "objects": X_TEST.astype(object),
    "text": X_TEST.astype("S3"),
    "grey": X_TEST[:, :1],
    "smaller": X_TEST[:, :, :16],
    "larger": np.zeros((4, 3, 64, 64), np.uint8),
    "as many bytes": np.zeros((2, 3, 32, 64), np.uint8),
    "no rows": X_TEST[:0],
}


@pytest.mark.parametrize(
    ("layout", "kind"),
    [
        (layout, kind)
        for layout in ARRAYS
        for kind in IMAGES
        if layout != "prepared" or kind not in ("objects", "text")
    ],
)
def test_images_of_another_kind_are_refused(layout: str, kind: str, tmp_path: Path) -> None:
    LAYOUTS[layout].write(tmp_path, {"train": GOOD["train"], "test": (IMAGES[kind], Y_TEST)})
    assert "test" in refused(layout, tmp_path, "test")


PICTURES: dict[str, Any] = {
    "bytes": lambda cells: pa.array(cells, pa.binary()),
    "large bytes": lambda cells: pa.array(cells, pa.large_binary()),
    "dictionary": lambda cells: pa.array(cells, pa.binary()).dictionary_encode(),
    "struct without path": lambda cells: pa.array(
        [{"bytes": cell} for cell in cells], pa.struct([("bytes", pa.binary())])
    ),
    "struct of large bytes": lambda cells: pa.array(
        [{"bytes": cell, "path": "a.png"} for cell in cells],
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
    ),
}
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint64()]


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("kind", PICTURES)
def test_columns_of_pictures(kind: str, column: str, tmp_path: Path) -> None:
    cells = PICTURES[kind]([encode(image) for image in X_TEST])
    for index, integer in enumerate(INTEGERS):
        table = pa.table({"path": ["x"] * 4, "label": pa.array(Y_TEST, integer), column: cells})
        folder = tmp_path / str(index)
        folder.mkdir()
        pq.write_table(table, folder / "test-00000-of-00001.parquet", row_group_size=3)
        split = data.read("cifar10", "test", folder)
        assert torch.equal(split.images, torch.from_numpy(X_TEST))
        assert split.labels.tolist() == Y_TEST


def test_labels_may_be_dictionary_encoded(tmp_path: Path) -> None:
    labels = pa.array(Y_TEST, pa.int64()).dictionary_encode()
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [encode(x) for x in X_TEST], labels)
    assert data.read("cifar10", "test", tmp_path).labels.tolist() == Y_TEST


def cells(content: bytes | None) -> Any:
    return pa.array([{"bytes": content, "path": "airplane/1.png"}], IMG)


ONE = pa.array([0], pa.int64())
COLUMNS: dict[str, tuple[Any, str]] = {
    "a path alone": (pa.table({"img": cells(None), "label": ONE}), "files are elsewhere"),
    "no cell": (pa.table({"img": pa.array([None], IMG), "label": ONE}), "empty cells"),
    "two columns": (
        pa.table({"img": cells(encode(X[0])), "image": cells(encode(X[1])), "label": ONE}),
        "two columns of pictures",
    ),
    "two labels": (
        pa.Table.from_arrays([cells(encode(X[0])), ONE, ONE], ["img", "label", "label"]),
        "two columns `label`",
    ),
    "CIFAR-100": (
        pa.table({"img": cells(encode(X[0])), "fine_label": ONE, "coarse_label": ONE}),
        r"no column `label` \(has: img, fine_label, coarse_label\)",
    ),
    "full numbers": (
        pa.table({"image": cells(encode(X[0])), "digits": pa.array([[1, 2]])}),
        "no column `label`",
    ),
    "pixels": (pa.table({"img": pa.array([[0.5] * 3072]), "label": ONE}), "not struct<bytes"),
    "no rows": (
        pa.table({"img": pa.array([], IMG), "label": pa.array([], pa.int64())}),
        "holds no images",
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_other_columns_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    table, message = COLUMNS[kind]
    pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=rf"test-00000-of-00001\.parquet: .*{message}"):
        data.read("cifar10", "test", tmp_path)


def features(label: Any) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": {"img": {}, "label": label}}})}


CLASSES = list(data.info("cifar10").classes)


def _write_named(folder: Path, metadata: Any) -> None:
    file = folder / "test-00000-of-00001.parquet"
    write_parquet(file, [encode(image) for image in X_TEST], Y_TEST, metadata=metadata)


@pytest.mark.parametrize(
    "label", [{"names": CLASSES, "_type": "ClassLabel"}, {"dtype": "int64", "_type": "Value"}]
)
def test_label_names_of_the_set_are_read(label: Any, tmp_path: Path) -> None:
    _write_named(tmp_path, features(label))
    assert data.read("cifar10", "test", tmp_path).labels.tolist() == Y_TEST


@pytest.mark.parametrize(
    "metadata",
    [
        features({"names": CLASSES[::-1]}),
        features({"names": [*CLASSES[:9], "lorry"]}),
        features({"names": CLASSES[:9]}),
        features({"names": [*CLASSES, "other"]}),
        features({"names": list("0123456789")}),
        features({"names": "airplane"}),
        features({"names": [["airplane"], {"a": 1}]}),
        features([1]),
        {"huggingface": "{"},
        {"huggingface": "[" * 100_000},
        {"huggingface": "{}"},
        {"huggingface": b"\xff\xfe"},
    ],
    ids=str,
)
def test_label_names_of_another_set_or_order_are_refused(metadata: Any, tmp_path: Path) -> None:
    _write_named(tmp_path, metadata)
    with pytest.raises(UserError, match=r"parquet: (label names are|its Hugging Face metadata)"):
        data.read("cifar10", "test", tmp_path)


@pytest.mark.parametrize("names", [CLASSES[::-1], CLASSES[:9], None, [1]])
def test_batches_meta_of_another_order_is_refused(names: Any, tmp_path: Path) -> None:
    write_batches(tmp_path, X, Y)
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    for given, protocol in (([n.encode() for n in CLASSES], 2), (CLASSES, 5)):
        meta.write_bytes(pickle.dumps({"label_names": given, "num_vis": 3072}, protocol))
        assert data.read("cifar10", "test", tmp_path).labels.tolist() == Y_TEST
    meta.write_bytes(pickle.dumps({"label_names": names}, 2))
    with pytest.raises(UserError, match=r"batches\.meta: label names are"):
        data.read("cifar10", "test", tmp_path)


S = "train-{:05d}-of-{:05d}{}.parquet".format
SHARDS: dict[str, tuple[list[str], str]] = {
    "second missing": ([S(0, 2, "")], r"missing, first train-00001-of-00002\.parquet"),
    "first missing": ([S(1, 2, "")], r"missing, first train-00000-of-00002\.parquet"),
    "middle missing": (
        [S(0, 4, ""), S(3, 4, "")],
        r"2 of 4 shards missing, first train-00001-of-00004\.parquet",
    ),
    "hashed missing": (
        [S(0, 2, "-0a1b2c3d4e5f6071")],
        r"missing, first train-00001-of-00002-\*\.parquet",
    ),
    "two generations": (
        [S(0, 2, ""), S(1, 2, ""), S(0, 1, "")],
        r"two generations of one part, train-00000-of-00001\.parquet and train-0000",
    ),
    "two generations, each in part": ([S(0, 2, ""), S(2, 3, "")], "two generations"),
    "hashed twice": (
        [S(0, 1, "-0a1b2c3d"), S(0, 1, "-ffffffff")],
        r"one shard twice, train-00000-of-00001-0a1b2c3d\.parquet and train-00000-of-00001-ffff",
    ),
    "hashed and plain": ([S(0, 1, ""), S(0, 1, "-0a1b2c3d")], "holds cifar10 twice"),
    "beyond": ([S(0, 1, ""), S(1, 1, "")], r"train-00001-of-00001\.parquet: numbered beyond the 1"),
    "of none": ([S(0, 0, "")], r"train-00000-of-00000\.parquet: numbered beyond the 0"),
    "of many": ([S(0, 99999, "")], "99998 of 99999 shards missing"),
    "numbers from 1": (["train-1.parquet", "train-2.parquet"], r"first train-0\.parquet"),
    "one number twice": (["train-0.parquet", "train-00.parquet"], "one shard twice"),
    "number and total": (["train-0.parquet", S(0, 1, "")], "holds cifar10 twice"),
    "converted without the first": (["train/0001.parquet"], r"first 0000\.parquet"),
    "converted with a gap": (
        ["train/0000.parquet", "train/0002.parquet"],
        r"1 of 3 shards missing, first 0001\.parquet",
    ),
    "converted and plain": (["train/0000.parquet", S(0, 1, "")], "holds cifar10 twice"),
    "converted of another name": (
        ["train/0000.parquet", "train/part.parquet"],
        r"train/part\.parquet: no name of a shard",
    ),
    "old name and plain": (["cifar10-train.parquet", S(0, 1, "")], "holds cifar10 twice"),
    "in two folders": ([S(0, 1, ""), f"plain_text/{S(0, 1, '')}"], "holds cifar10 twice"),
    "in two other folders": (
        [f"data/{S(0, 1, '')}", f"plain_text/{S(0, 1, '')}"],
        r"holds cifar10 twice, (data|plain_text)/train-00000-of-00001\.parquet and (data|plain)",
    ),
    "a browser's second": (
        [S(0, 1, ""), "train-00000-of-00001 (1).parquet"],
        r"of-00001 \(1\)\.parquet: no name of a shard",
    ),
    "a copy": ([S(0, 1, ""), "train-00000-of-00001-copy.parquet"], "no name of a shard"),
    "of another name": (["training.parquet"], r"training\.parquet: no name of a shard"),
    "unfinished": (
        [S(0, 2, ""), f"{S(1, 2, '')}.incomplete"],
        r"of-00002\.parquet\.incomplete: an unfinished download",
    ),
    "unfinished in a browser": (
        [f"plain_text/{S(0, 1, '')}.crdownload"],
        r"crdownload: an unfinished download",
    ),
    "unfinished beside": ([S(0, 1, ""), f"{S(0, 1, '')}.aria2"], "an unfinished download"),
    "a lock alone": ([S(0, 2, ""), f"{S(1, 2, '')}.lock"], "1 of 2 shards missing"),
    "another config": ([f"full_numbers/{S(0, 1, '')}"], "holds no cifar10"),
    "a part of the conversion": (["partial-train/0000.parquet"], "holds no cifar10"),
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_that_are_no_whole_generation_are_refused(kind: str, tmp_path: Path) -> None:
    names, message = SHARDS[kind]
    for name in names:
        write_parquet(tmp_path / name, [encode(X[0])], [0])
    with pytest.raises(UserError, match=message):
        data.read("cifar10", "train", tmp_path)


WHOLE: dict[str, list[str]] = {
    "hashed, each its own": [S(0, 2, "-0a1b2c3d4e5f6071"), S(1, 2, "-ffff2c3d4e5f6071")],
    "beside extra and validation": [
        S(0, 2, ""),
        S(1, 2, ""),
        "extra-0.parquet",
        "validation.parquet",
    ],
    "numbered": ["train-1.parquet", "train-0.parquet"],
    "twelve": [f"train-{index}.parquet" for index in range(12)],
    "converted": ["plain_text/train/0000.parquet", "plain_text/train/0001.parquet"],
    "another config beside": [S(0, 2, ""), S(1, 2, ""), f"full_numbers/{S(0, 1, '')}"],
    "locks beside": [S(0, 2, ""), S(1, 2, ""), f"{S(0, 2, '')}.lock"],
    "alone": ["train.parquet"],
    "default": [f"default/{S(0, 1, '')}"],
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_generations_are_read_in_order(kind: str, tmp_path: Path) -> None:
    names = sorted(WHOLE[kind], key=lambda name: (len(name), name))
    for index, name in enumerate(names):
        if "-of-" in name or "train" in name:
            write_parquet(tmp_path / name, [encode(X[index % 10])], [index % 10])
        else:
            (tmp_path / name).write_bytes(b"another part, not opened")
    ours = [name for name in names if "train" in name and "full" not in name and "lock" not in name]
    split = data.read("cifar10", "train", tmp_path)
    assert split.labels.tolist() == [names.index(name) % 10 for name in ours]


def test_training_shards_are_checked_apart_from_those_of_test(tmp_path: Path) -> None:
    write_hugging_face(tmp_path, shards=2)
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    assert len(data.read("cifar10", "train", tmp_path)) == 10
    with pytest.raises(UserError, match="first test-00001-of-00002"):
        data.read("cifar10", "test", tmp_path)


def _train_and_test_apart(folder: Path) -> None:
    write_parquet(folder / "train-00000-of-00001.parquet", [encode(X[0])], [0])
    write_parquet(folder / "data/test-00000-of-00001.parquet", [encode(X[0])], [0])


def _parquet_and_batches(folder: Path) -> None:
    write_hugging_face(folder)
    write_batches(folder, X, Y)


def _batches_and_inner(folder: Path) -> None:
    write_batches(folder, X, Y)
    write_batch_files(folder, GOOD)


def _parquet_and_archive(folder: Path) -> None:
    write_hugging_face(folder)
    write_archive(folder, GOOD)


@pytest.mark.parametrize("part", readers.PARTS)
@pytest.mark.parametrize(
    "write",
    [_train_and_test_apart, _parquet_and_batches, _batches_and_inner, _parquet_and_archive],
)
def test_two_layouts_in_one_folder_are_refused(
    write: Callable[[Path], None], part: Part, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match=r"holds cifar10 twice, \S+ and \S+; keep one"):
        data.read("cifar10", part, tmp_path)


def test_svhn_in_two_layouts_is_refused(tmp_path: Path) -> None:
    write_mat(tmp_path, GOOD)
    write_parquet(tmp_path / "cropped_digits/train-00000-of-00001.parquet", [encode(X[0])], [0])
    with pytest.raises(UserError, match=r"twice, cropped_digits/train\S+ and train_32x32\.mat"):
        data.read("svhn", "train", tmp_path)


def test_the_folder_of_the_name_goes_before_its_parent(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", [encode(X[5])], [5])
    write_hugging_face(tmp_path / "cifar10")
    assert data.read("cifar10", "train", tmp_path).labels.tolist() == Y


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("cifar10", "svhn"),
        ("cifar10", "svhn/data"),
        ("cifar10", "cropped_digits"),
        ("cifar10", "full_numbers"),
        ("svhn", "cifar10"),
        ("svhn", "plain_text"),
        ("svhn", "cifar10/default"),
        ("svhn", "full_numbers"),
        ("svhn", "digits"),
    ],
)
def test_folder_of_another_set_is_not_taken(name: str, inner: str, tmp_path: Path) -> None:
    write_hugging_face(tmp_path / inner)
    with pytest.raises(UserError, match=f"holds no {name}"):
        data.read(name, "test", tmp_path / inner)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_the_hubs_folder_itself_may_be_given(name: str, tmp_path: Path) -> None:
    inner = tmp_path / {"cifar10": "plain_text", "svhn": "cropped_digits"}[name]
    write_hugging_face(inner)
    assert len(data.read(name, "train", inner)) == 10


def test_archive_beside_its_folder_is_as_torchvision_leaves_it(tmp_path: Path) -> None:
    write_archive(tmp_path, GOOD)
    write_batch_files(tmp_path / "cifar-10-batches-py", GOOD)
    assert torch.equal(data.read("cifar10", "train", tmp_path).images, torch.from_numpy(X))
    other: Any = {"train": (X[::-1].copy(), Y), "test": GOOD["test"]}
    write_batch_files(tmp_path / "cifar-10-batches-py", other)
    assert len(data.read("cifar10", "test", tmp_path)) == 4
    with pytest.raises(UserError, match=r"data_batch_1: not the one of .*tar\.gz; remove one"):
        data.read("cifar10", "train", tmp_path)


def test_archive_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    write_archive(tmp_path, GOOD)
    data.read("cifar10", "train", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize("packed", [False, True])
def test_sixth_batch_is_refused_and_not_left_out(packed: bool, tmp_path: Path) -> None:
    inner = tmp_path / "cifar-10-batches-py"
    write_batches(tmp_path, X, Y)
    shutil.copy(inner / "data_batch_1", inner / "data_batch_6")
    if packed:
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(inner, "./cifar-10-batches-py")
        shutil.rmtree(inner)
    with pytest.raises(UserError, match="data_batch_6 is no batch of CIFAR-10"):
        data.read("cifar10", "train", tmp_path)


@pytest.mark.parametrize("label", [0, 11, 255])
def test_svhn_has_labels_of_1_to_10(label: int, tmp_path: Path) -> None:
    labels = np.array([1, 2, 3, label], np.uint8)[:, None]
    write_mat(tmp_path, {"test": (X_TEST, labels)})
    with pytest.raises(UserError, match=r"test_32x32\.mat: labels must lie in 1\.\.10"):
        data.read("svhn", "test", tmp_path)


def test_svhn_labels_may_be_a_row_or_a_column(tmp_path: Path) -> None:
    for shape in ((4, 1), (1, 4), (4,)):
        labels = np.array([10, 1, 2, 3], np.uint8).reshape(shape)
        write_mat(tmp_path, {"test": (X_TEST, labels)})
        assert data.read("svhn", "test", tmp_path).labels.tolist() == [0, 1, 2, 3]


def test_svhn_without_compression_is_read(tmp_path: Path) -> None:
    labels = np.array([[10], [1], [2], [3]], np.int32)
    content = {"more": [1.5], "X": X_TEST.transpose(2, 3, 1, 0), "y": labels}
    scipy.io.savemat(tmp_path / "test_32x32.mat", content)
    assert data.read("svhn", "test", tmp_path).labels.tolist() == [0, 1, 2, 3]


def test_messages_hold_no_control_codes_of_a_file(tmp_path: Path) -> None:
    table = pa.table({"\x1b[31mred\n": ONE, **{f"c{i}": ONE for i in range(100)}})
    pq.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    with pytest.raises(UserError) as caught:
        data.read("cifar10", "test", tmp_path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_as_data_folder_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, GOOD)
    with pytest.raises(UserError, match="no such data folder"):
        data.read("cifar10", "train", tmp_path / "cifar-10-python.tar.gz")
