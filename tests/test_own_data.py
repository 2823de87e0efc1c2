"""`fmoe data prepare SOURCE --name NAME`: each form of labelled images, measured, kept, refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fmoe import config, data
from fmoe.data import decoding, own
from fmoe.data.facts import LARGEST_SIDE
from fmoe.data.making import make
from fmoe.data.pictures import decoder as pictures_decoder
from fmoe.data.sources import Columns, Wanted
from fmoe.errors import UserError
from fmoe.paths import home
from fmoe.storage.folder import Folder
from fmoe.training import joint
from fmoe.training.expert_store import ExpertStore
from pipelines.cli import main
from pipelines.data_claim import check_images
from tests.conftest import SMALL
from tests.published import X, Y, encode, write_batches, write_hugging_face_of

CLASSES = ("ant", "bee", "cat")
Images = NDArray[np.uint8]


def pictures(count: int, height: int = 5, width: int = 6, seed: int = 0) -> Images:
    """Colour, [N,H,W,3]; of a different mean in each channel."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 100, (count, height, width, 3)) + np.array([0, 50, 120])
    return np.asarray(images, np.uint8)


def write(folder: Path, images: Images, first: int = 0) -> None:
    """Numbered through, a folder a class, whose turn each takes."""
    for number, image in enumerate(images, first):
        file = folder / CLASSES[number % 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(file)


def planes(images: Images) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def command(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fmoe data`."""
    with pytest.MonkeyPatch.context() as patch:
        out, err = io.StringIO(), io.StringIO()
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        with pytest.raises(SystemExit) as ended:
            main(["data", *map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return ended.value.code, out.getvalue(), err.getvalue()


def test_parts_of_folders_are_what_was_written(tmp_path: Path) -> None:
    """In the order of their numbers (9 before 10), whatever class; measured on train alone."""
    train, val, test = pictures(12), pictures(6, seed=1), pictures(3, seed=2)
    for part, images in (("train", train), ("validation", val), ("test", test)):
        write(tmp_path / part, images)
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "README.md").write_text("about")
    made = make(tmp_path, "insects")
    loaded = data.load("insects")
    assert torch.equal(loaded.train.images, planes(train))
    assert torch.equal(loaded.val.images, planes(val))
    assert torch.equal(loaded.test.images, planes(test))
    assert loaded.train.labels.tolist() == [0, 1, 2] * 4
    assert loaded.facts.classes == CLASSES
    assert loaded.facts.shape == (3, 5, 6)
    pixels = train.reshape(-1, 3) / 255
    assert loaded.facts.mean == pytest.approx(pixels.mean(0), abs=1e-12)
    assert loaded.facts.std == pytest.approx(pixels.std(0), abs=1e-12)
    assert loaded.digest == made.own.about.digest
    assert loaded.identity.val_images == 6
    assert data.load("insects", val_images=4).identity.val_images == 4
    with pytest.raises(UserError, match=r"data\.val_images: 7, and insects has 6 validation"):
        data.load("insects", val_images=7)


def test_classes_alone_are_cut_by_class_and_always_the_same(tmp_path: Path) -> None:
    write(tmp_path / "all", pictures(90))
    made = make(tmp_path / "all", "insects")
    counts = {part: entry.per_class for part, entry in made.own.about.parts.items()}
    assert counts == {"train": [21] * 3, "val": [3] * 3, "test": [6] * 3}
    assert "cut by class" in made.notes[0]
    again = make(tmp_path / "all", "again")
    assert again.own.about.digest == made.own.about.digest
    loaded = data.load("insects")
    rows = torch.cat([loaded.train.images, loaded.val.images, loaded.test.images])
    assert len({image.numpy().tobytes() for image in rows}) == 90


def test_train_and_test_leave_a_tenth_for_validation(tmp_path: Path) -> None:
    write(tmp_path / "train", pictures(60))
    write(tmp_path / "test", pictures(6, seed=1))
    make(tmp_path, "insects")
    loaded = data.load("insects")
    assert (len(loaded.train), len(loaded.val)) == (54, 6)
    assert len(data.load("insects", val_images=20).val) == 20


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """The built-in set's own files, and the same images as folders of PNG."""
    write_hugging_face_of(tmp_path / "cifar10", 60, 20)
    whole = data.read("cifar10", "train", tmp_path), data.read("cifar10", "test", tmp_path)
    names = data.info("cifar10").classes
    for part, split in zip(("train", "test"), whole, strict=True):
        for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            file = tmp_path / "png" / part / names[label] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy().transpose(1, 2, 0)).save(file)
    return tmp_path


def trained(name: str, data_dir: Path | None, run: Path) -> dict[str, torch.Tensor]:
    """Weights after both phases."""
    quick = ["experts.train.batch_size=16", "joint.batch_size=16", "joint.epochs=1"]
    settings = config.load("digits-whole", [*SMALL, *quick, f"data.name={name}"])
    loaded = data.load_training(name, data_dir, val_images=20)
    store = ExpertStore(Folder.at(run / "experts"))
    store.obtain_all(settings, loaded)
    for _ in joint.joint_epochs(settings, loaded, store, Folder.at(run)):
        pass
    return joint.trained(settings, Folder.at(run), loaded.identity, 0).state_dict()


def test_folders_of_cifar_train_to_the_same_bits(cifar: Path, tmp_path: Path) -> None:
    """By the generic way, with the normalisation that the built-in set has."""
    about = data.info("cifar10")
    make(cifar / "png", "mine", mean=about.mean, std=about.std)
    assert data.load("mine", val_images=20).digest == (
        data.load("cifar10", cifar, val_images=20).digest
    )
    one = trained("cifar10", cifar, tmp_path / "one")
    other = trained("mine", None, tmp_path / "other")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


NAMES = json.dumps(
    {"info": {"features": {"label": {"names": [*CLASSES], "_type": "ClassLabel"}}}}
).encode()
BYTES = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(images: Images, form: str, folder: Path) -> pa.Table:
    """Hugging Face's layouts of pictures and of labels."""
    encoded = [encode(image.transpose(2, 0, 1)) for image in images]
    cells: Any = pa.array([{"bytes": one, "path": None} for one in encoded], BYTES)
    labels: Any = [number % 3 for number in range(len(images))]
    if form == "bytes alone":
        cells = pa.array(encoded, pa.binary())
    if form in ("paths in cells", "paths as text"):
        files = [f"{hashlib.sha256(one).hexdigest()[:8]}.png" for one in encoded]
        for file, one in zip(files, encoded, strict=True):
            (folder / file).write_bytes(one)
        cells = pa.array([{"bytes": None, "path": file} for file in files], BYTES)
        if form == "paths as text":
            cells = pa.array(files)
    if form == "text":
        labels = [CLASSES[label] for label in labels]
    name = "picture" if form == "another column" else "image"
    made = pa.table({name: cells, "label": labels, "id": range(len(images))})
    return made.replace_schema_metadata({b"huggingface": NAMES} if form == "names" else {})


@pytest.mark.parametrize(
    "form",
    [
        "names",
        "numbers",
        "text",
        "bytes alone",
        "paths in cells",
        "paths as text",
        "another column",
    ],
)
def test_parquet(form: str, tmp_path: Path) -> None:
    train, test = pictures(12), pictures(6, seed=1)
    pq.write_table(table(train[:6], form, tmp_path), tmp_path / "train-00000-of-00002.parquet")
    pq.write_table(table(train[6:], form, tmp_path), tmp_path / "train-00001-of-00002.parquet")
    pq.write_table(table(test, form, tmp_path), tmp_path / "test-00000-of-00001.parquet")
    make(tmp_path, "insects")
    loaded = data.load("insects", val_images=1)
    assert torch.equal(data.read("insects", "train").images, planes(train))
    assert torch.equal(loaded.test.images, planes(test))
    assert data.read("insects", "train").labels.tolist() == [0, 1, 2] * 4
    assert loaded.facts.classes == (CLASSES if form in ("names", "text") else ("0", "1", "2"))


@pytest.mark.parametrize(
    "names",
    [
        ("data/train.parquet", "data/validation.parquet", "data/test.parquet"),
        ("train/0000.parquet", "validation/0000.parquet", "test/0000.parquet"),
    ],
)
def test_parquet_has_a_validation_part(names: tuple[str, ...], tmp_path: Path) -> None:
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table(pictures(6, seed=seed), "numbers", tmp_path), tmp_path / name)
    make(tmp_path, "insects")
    assert torch.equal(data.load("insects").val.images, planes(pictures(6, seed=1)))


def test_one_parquet_file_is_cut(tmp_path: Path) -> None:
    pq.write_table(table(pictures(30), "text", tmp_path), tmp_path / "mine.parquet")
    make(tmp_path / "mine.parquet", "insects")
    loaded = data.load("insects")
    assert [len(part) for part in (loaded.train, loaded.val, loaded.test)] == [21, 3, 6]


def test_columns_are_asked_for_where_they_are_not_clear(tmp_path: Path) -> None:
    cells = pa.array([encode(image.transpose(2, 0, 1)) for image in pictures(30)], pa.binary())
    labels = [number % 3 for number in range(30)]
    columns = {"left": cells, "right": cells, "kind": labels, "size": labels[::-1]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"a\.parquet: which column is the image, `left` or `right`"
    ):
        make(tmp_path, "insects")
    with pytest.raises(UserError, match=r"column is the label, `kind` or `size`\? Give --label"):
        make(tmp_path, "insects", columns=Columns("left"))
    with pytest.raises(UserError, match="--label-column sort: no such column"):
        make(tmp_path, "insects", columns=Columns("left", "sort"))
    assert make(tmp_path, "insects", columns=Columns("left", "kind")).own.facts.shape == (3, 5, 6)


GREY = pictures(12)[..., 0]
LABELS = np.arange(12) % 3
FORMS: dict[str, dict[str, NDArray[Any]]] = {
    "MedMNIST": {
        **{f"{part}_images": pictures(12) for part in ("train", "val", "test")},
        **{f"{part}_labels": LABELS[:, None] for part in ("train", "val", "test")},
    },
    "Keras": {"x_train": GREY, "y_train": LABELS, "x_test": GREY, "y_test": LABELS},
    "16 bits": {
        **{"x_train": GREY.astype(np.uint16) << 8, "y_train": LABELS},
        **{"x_test": GREY.astype(np.uint16) << 8, "y_test": LABELS},
    },
    "channels first, names": {
        **{"x_train": pictures(12).transpose(0, 3, 1, 2), "y_train": LABELS},
        **{"x_test": pictures(12).transpose(0, 3, 1, 2), "y_test": LABELS},
        "classes": np.array(CLASSES),
    },
    "text": {
        **{"x_train": GREY, "y_train": np.array(CLASSES)[LABELS]},
        **{"x_test": GREY, "y_test": np.array(CLASSES)[LABELS]},
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_npz(form: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **FORMS[form])  # type: ignore[arg-type]
    make(tmp_path / "a.npz", "insects")
    train = data.read("insects", "train")
    colour = form in ("MedMNIST", "channels first, names")
    assert torch.equal(
        train.images, planes(pictures(12)) if colour else torch.from_numpy(GREY[:, None].copy())
    )
    assert train.labels.tolist() == LABELS.tolist()
    named = form in ("channels first, names", "text")
    assert data.find("insects").facts.classes == (CLASSES if named else ("0", "1", "2"))


def write_idx(folder: Path, images: Images, labels: NDArray[Any], packed: bool) -> None:
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            name = f"{prefix}-{kind}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(head + values.tobytes()))
            else:
                (folder / name).write_bytes(head + values.tobytes())


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_and_its_likes(packed: bool, tmp_path: Path) -> None:
    digits = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    labels = np.arange(20) % 10
    write_idx(tmp_path / "FashionMNIST" / "raw", digits, labels, packed)
    read = data.read("fashion-mnist", "train", tmp_path)
    assert torch.equal(read.images, torch.from_numpy(digits[:, None]))
    with pytest.raises(UserError, match="holds no mnist"):
        data.read("mnist", "train", tmp_path / "FashionMNIST")
    make(tmp_path, "mine")
    assert data.find("mine").facts.classes == data.info("fashion-mnist").classes
    write_idx(tmp_path / "letters", GREY, LABELS, packed)
    make(tmp_path / "letters", "letters")
    found = data.find("letters").facts
    assert (found.shape, found.classes) == ((1, 5, 6), ("0", "1", "2"))
    assert torch.equal(data.read("letters", "test").images, torch.from_numpy(GREY[:, None].copy()))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], "values, and its header says"),
        (lambda data: b"\0\0\x0d" + data[3:], "not those of unsigned bytes"),
        (lambda data: data[:2], "not a readable IDX file"),
    ],
)
def test_damaged_idx(spoil: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    write_idx(folder, GREY, LABELS, False)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path, "letters")
    assert str(caught.value).startswith(str(file))


def test_sizes_and_channels_are_asked_for(tmp_path: Path) -> None:
    """Resized as Pillow does it; grey pictures stay grey unless one is in colour."""
    write(tmp_path / "train", pictures(6)[..., :1])
    write(tmp_path / "test", pictures(3, height=9, seed=1)[..., :1])
    with pytest.raises(UserError, match=r"test/ant/0.png: has 9x6 pixels, and others 5x6; "):
        make(tmp_path, "insects")
    made = make(tmp_path, "insects", wanted=Wanted((4, 3)))
    assert made.own.facts.shape == (1, 4, 3)
    first = Image.open(tmp_path / "train" / "ant" / "0.png")
    wanted = np.asarray(first.resize((3, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(data.read("insects", "train").images[0, 0], wanted)
    Image.fromarray(pictures(1)[0]).save(tmp_path / "train" / "ant" / "colour.png")
    assert make(tmp_path, "colours", wanted=Wanted((4, 3))).own.facts.shape == (3, 4, 3)
    assert make(tmp_path, "grey", wanted=Wanted((4, 3), 1)).own.facts.shape == (1, 4, 3)


def test_known_sets_can_be_made_smaller() -> None:
    made = make("digits", "tiny", wanted=Wanted((4, 4)))
    assert made.own.facts.shape == (1, 4, 4)
    assert torch.equal(data.read("tiny", "test").labels, data.read("digits", "test").labels)


def test_an_interrupted_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was decoded is not decoded again; the set is the same, and nothing is left behind."""
    monkeypatch.setattr(decoding, "AT_ONCE", 8)
    write(tmp_path / "all", pictures(40))
    whole = make(tmp_path / "all", "whole").own.about.digest

    def stop(done: int, total: int) -> None:
        if done == 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "all", "insects", progress=stop)
    assert own.find("insects") is None
    decoded: list[str] = []
    one = pictures_decoder.decode

    def counted(given: bytes, source: str, channels: int | None) -> Any:
        decoded.append(source)
        return one(given, source, channels)

    monkeypatch.setattr(decoding, "decode", counted)
    assert make(tmp_path / "all", "insects").own.about.digest == whole
    assert len(decoded) == 16
    assert not list((home() / "data" / ".preparing").iterdir())
    (tmp_path / "all" / "ant" / "0.png").write_bytes(encode(pictures(1)[0].transpose(2, 0, 1) // 2))
    decoded.clear()
    make(tmp_path / "all", "insects")
    assert len(decoded) == 40, "another file: all are read again"


def kept() -> dict[str, bytes]:
    folder = home() / "data"
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and ".preparing" not in file.parts
    }


def spoiled(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder of three classes with one thing wrong."""

    def made(folder: Path) -> Path:
        write(folder / "set", pictures(12))
        change(folder / "set")
        return folder / "set"

    return made


def saved(name: str, image: Image.Image, **options: Any) -> Callable[[Path], object]:
    return lambda folder: image.save(folder / "bee" / name, **options)


def npz(**arrays: Any) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        np.savez(folder / "a.npz", **arrays)
        return folder / "a.npz"

    return made


def of_parts(*names: str) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        for name in names:
            write(folder / "set" / name, pictures(6))
        return folder / "set"

    return made


def unlike(folder: Path) -> Path:
    write(folder / "set" / "train", pictures(6))
    write(folder / "set" / "test", pictures(6))
    (folder / "set" / "test" / "ant").rename(folder / "set" / "test" / "asp")
    return folder / "set"


def missing_shard(folder: Path) -> Path:
    pq.write_table(table(pictures(6), "numbers", folder), folder / "train-00001-of-00002.parquet")
    return folder


def outside(folder: Path) -> Path:
    (folder / "secret.png").write_bytes(encode(pictures(1)[0].transpose(2, 0, 1)))
    (folder / "set").mkdir()
    cells = pa.array([{"bytes": None, "path": "../secret.png"}] * 9, BYTES)
    pq.write_table(pa.table({"image": cells, "label": [0, 1, 2] * 3}), folder / "set" / "a.parquet")
    return folder / "set"


def beside(folder: Path) -> Path:
    for name in ("train", "test", "unlabeled"):
        write(folder / "set" / name, pictures(6))
    return folder / "set"


def parts_within(folder: Path) -> Path:
    for name in ("ant", "bee"):
        write(folder / "set" / name, pictures(6))
        (folder / "set" / name / "ant").rename(folder / "set" / name / "test")
    return folder / "set"


def tables(*names: str) -> Callable[[Path], Path]:
    """The same table under each name."""

    def made(folder: Path) -> Path:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table(pictures(6), "numbers", folder), folder / name)
        return folder

    return made


def of_labels(*columns: Any) -> Callable[[Path], Path]:
    """Shards of which each has these labels."""

    def made(folder: Path) -> Path:
        for number, labels in enumerate(columns):
            cells = table(pictures(len(labels)), "numbers", folder)["image"]
            pq.write_table(
                pa.table({"image": cells, "label": labels}), folder / f"{number:04d}.parquet"
            )
        return folder

    return made


def idx_of(images: int, labels: int) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        write_idx(folder / "raw", GREY[:images], LABELS[:labels], False)
        return folder

    return made


def spoiled_npz(folder: Path) -> Path:
    file = npz(images=GREY, labels=LABELS)(folder)
    np.savez_compressed(file, images=GREY, labels=LABELS)
    whole = bytearray(file.read_bytes())
    whole[200:260] = bytes(60)
    file.write_bytes(bytes(whole))
    return file


def bytes_of(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def cut_off(folder: Path) -> None:
    whole = bytes_of(Image.fromarray(pictures(1)[0]), "PNG")
    (folder / "bee" / "x.png").write_bytes(whole[:-20])


COLOUR = Image.fromarray(pictures(1)[0])
CLEAR = COLOUR.convert("RGBA")
CLEAR.putalpha(7)
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such place": (lambda folder: folder / "none", "no such file or folder"),
    "an empty folder": (lambda folder: folder, "holds no data set: expected"),
    "a text file": (
        spoiled(lambda f: (f / "bee" / "a.txt").write_text("x")),
        "a.txt: not a rea",
    ),
    "one class": (
        spoiled(lambda f: [(f / name).rename(f.parent / name) for name in ("ant", "cat")]),
        r"1 classes \('bee'\); there must be 2 to 1000",
    ),
    "an empty class": (spoiled(lambda f: (f / "dog").mkdir()), "no training image of class 'dog'"),
    "two images of a class": (
        spoiled(lambda f: [(f / "bee" / f"{n}.png").rename(f.parent / f"{n}") for n in (1, 4)]),
        "class 'bee' has 2 images; to be cut",
    ),
    "an image beside": (
        spoiled(lambda f: COLOUR.save(f / "x.png")),
        "x.png: stands beside fold",
    ),
    "a link to a folder": (
        spoiled(lambda f: (f / "bee" / "more").symlink_to(f / "ant")),
        "bee/more: a link to a folder",
    ),
    "another size": (
        spoiled(saved("x.png", COLOUR.resize((9, 9)))),
        "bee/x.png: has 9x9 pixels, and others 5x6; give --size",
    ),
    "too large": (
        lambda folder: spoiled(
            lambda f: Image.new("L", (LARGEST_SIDE + 1, 2)).save(f / "ant" / "0.png")
        )(folder),
        f"ant/0.png: 2x{LARGEST_SIDE + 1} pixels; give --size",
    ),
    "truncated": (spoiled(cut_off), "bee/x.png: not a readable image"),
    "transparent": (spoiled(saved("x.png", CLEAR)), "bee/x.png: transparent in parts"),
    "CMYK": (spoiled(saved("x.jpg", COLOUR.convert("CMYK"))), "bee/x.jpg: its colours are CMYK"),
    "animated": (
        spoiled(saved("x.gif", COLOUR, save_all=True, append_images=[COLOUR.rotate(90)])),
        "bee/x.gif: animated",
    ),
    "floats": (
        spoiled(saved("x.tif", Image.fromarray(np.ones((5, 6), np.float32)))),
        "bee/x.tif: a TIFF of signed numbers or floats",
    ),
    "no test": (of_parts("train", "val"), "has train and val and no test: name a part so"),
    "a part twice": (of_parts("train", "test", "val", "valid"), "has val twice, val and valid"),
    "unlike classes": (unlike, "test/asp: a class that .*train does not have"),
    "a missing shard": (missing_shard, "1 of 2 shards missing, first number 0"),
    "a file outside": (outside, r"a\.parquet: row 0: ../secret.png is not beside"),
    "float arrays": (
        npz(x_train=GREY / 255, y_train=LABELS, x_test=GREY / 255, y_test=LABELS),
        "x_train: images are float64; expected uint8",
    ),
    "fewer labels": (npz(images=GREY, labels=LABELS[:9]), "images: 12 images and 9 labels"),
    "no labels": (npz(images=GREY), "no array labels"),
    "pickled": (npz(images=GREY, labels=np.array([None] * 12)), "not a readable .npz"),
    "unclear channels": (
        npz(images=np.zeros((9, 3, 8, 3), np.uint8), labels=LABELS[:9]),
        "not clear",
    ),
    "negative labels": (npz(images=GREY, labels=LABELS - 1), "labels -1..1; expected 0..999"),
    "a label that no image has": (
        npz(images=GREY, labels=LABELS * 2),
        "no training image of class '1'",
    ),
    "a folder beside parts": (beside, "unlabeled: stands beside test/, which looks like a part"),
    "parts within classes": (parts_within, "test: a part within a class"),
    "a class twice": (
        spoiled(lambda f: (f / "asp").symlink_to(f / "ant")),
        "asp: is the same folder as class 'ant'",
    ),
    "a broken link": (
        spoiled(lambda f: (f / "bee" / "x.png").symlink_to(f / "none")),
        "bee/x.png: cannot be read",
    ),
    "a copy beside a table": (
        tables("train.parquet", "train_copy.parquet", "test.parquet"),
        "train_copy.parquet: no name of a part",
    ),
    "two places of tables": (
        tables("train.parquet", "test.parquet", "data/train.parquet"),
        "two layouts; keep one",
    ),
    "a part in another's folder": (
        tables("train/test-0.parquet", "test/0000.parquet"),
        "is it test, by its name, or train, by its folder",
    ),
    "a shard left out": (
        tables("train/0000.parquet", "train/0002.parquet", "test/0000.parquet"),
        r"shards \[0, 2\]; expected 0 on",
    ),
    "numbers and text": (
        of_labels([0, 1, 2], ["ant", "bee", "cat"]),
        "labels are numbers in one file, text in another",
    ),
    "more labels than images of MNIST's kind": (idx_of(9, 12), "9 images and 12 labels"),
    "a spoiled npz": (spoiled_npz, "a.npz: not a readable .npz"),
    "one number for images": (npz(images=np.uint8(3), labels=LABELS), "images: is no array"),
    "a class named twice": (
        npz(images=GREY, labels=LABELS, classes=np.array(["a", "b", "a"])),
        "two classes are named 'a'",
    ),
    "a class without a name": (
        npz(images=GREY, labels=LABELS, classes=np.array(["a", "", "b"])),
        "class 1 has no name",
    ),
    "nobody's home": (lambda folder: Path("~nosuchuser/x"), "no such file or folder"),
    "no contrast": (npz(images=0 * GREY, labels=LABELS), "one value in a channel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_lose_nothing(case: str, tmp_path: Path) -> None:
    write(tmp_path / "good", pictures(30))
    make(tmp_path / "good", "insects")
    before = kept()
    (tmp_path / "bad").mkdir()
    made, message = REFUSED[case]
    code, out, err = command("prepare", made(tmp_path / "bad"), "--name", "insects")
    assert code == 2
    assert out == ""
    (line,) = err.splitlines()
    assert re.search(message, line), line
    assert kept() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name", "cifar10"], "--name cifar10: is fmoe's own"),
        (["--name", "raw"], "--name raw: is fmoe's own"),
        (["--name", "x.safetensors"], "--name x.safetensors: small letters"),
        (["--name", "x", "--to", ""], "--to: names no folder"),
        (["--name", "../x"], "--name ../x: small letters"),
        (["--name", "x", "--size", "0"], "--size 0: expected pixels"),
        (["--name", "x", "--size", "8x8x8"], "--size 8x8x8: expected pixels"),
        (["--name", "x", "--channels", "2"], "--channels 2: expected 1"),
        (["--name", "x", "--mean", "a"], "--mean a: expected a number a channel"),
        (["--name", "x", "--mean", "0.5", "--std", "0.5"], "mean: 1 values for 3 channels"),
        (["--name", "x", "--mean", "1.5,0,0", "--std", "1,1,1"], "mean.0: Input should be less"),
        ([], "what shall the data set be called? Give --name"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str, tmp_path: Path) -> None:
    write(tmp_path, pictures(30))
    code, _, err = command("prepare", tmp_path, *options)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_set_and_a_path_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is guessed; a prepared set is a source, too."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "digits", pictures(30))
    code, _, err = command("prepare", "digits", "--name", "mine")
    assert (code, "is a data set of fmoe's, and a path: give ./digits" in err) == (2, True)
    assert command("prepare", "./digits", "--name", "mine")[0] == 0
    assert command("prepare", "./digits", "--name", "mine")[0] == 0, "again"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine: holds no data set"):
        make("mine", "again")
    (tmp_path / "mine").rmdir()
    again = make("mine", "again", wanted=Wanted((3, 3)))
    assert again.own.has("val")
    assert again.own.facts.classes == CLASSES


def test_types_of_shards_are_one(tmp_path: Path) -> None:
    of_labels(pa.array([0, 1, 2] * 2, pa.int64()), pa.array([0, 1, 2] * 2, pa.uint64()))(tmp_path)
    make(tmp_path, "insects")
    assert data.find("insects").facts.classes == ("0", "1", "2")


def test_pictures_beside_tables_are_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an interrupted try has decoded is not taken where files may have changed since."""
    monkeypatch.setattr(decoding, "AT_ONCE", 4)
    (tmp_path / "im").mkdir()
    for number, image in enumerate(pictures(12)):
        Image.fromarray(image).save(tmp_path / "im" / f"{number}.png")
    paths = [f"im/{number}.png" for number in range(12)]
    pq.write_table(pa.table({"image": paths, "label": [0, 1, 2] * 4}), tmp_path / "all.parquet")
    whole = (tmp_path / "im" / "11.png").read_bytes()
    (tmp_path / "im" / "11.png").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"im/11\.png \(all\.parquet, row 11\): not a readable image"
    ):
        make(tmp_path, "insects")
    (tmp_path / "im" / "11.png").write_bytes(whole)
    Image.fromarray(np.full((5, 6, 3), 255, np.uint8)).save(tmp_path / "im" / "0.png")
    make(tmp_path, "insects")
    loaded = data.load("insects")
    everything = torch.cat([loaded.train.images, loaded.val.images, loaded.test.images])
    assert (everything == 255).flatten(1).all(1).any()


def test_work_of_another_name_is_left(tmp_path: Path) -> None:
    other = home() / "data" / ".preparing" / "insects-32-0123456789abcdef"
    other.mkdir(parents=True)
    write(tmp_path, pictures(30))
    make(tmp_path, "insects")
    assert other.exists()


def test_other_names_of_classes_are_another_set(tmp_path: Path) -> None:
    for names in (("a", "b", "c"), ("a", "c", "b")):
        np.savez(tmp_path / "a.npz", images=GREY, labels=LABELS, classes=np.array(names))
        made = make(tmp_path / "a.npz", "insects")
    assert made.before is not None


def test_a_sheet_replaces_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.png").write_text("mine")
    code, _, err = command("show", "digits")
    assert (code, "digits.png: is there already; name it by --to" in err) == (2, True)
    assert (tmp_path / "digits.png").read_text() == "mine"
    assert command("show", "digits", "--to", "digits.png")[0] == 0


def test_a_damaged_set_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, pictures(30))
    made = make(tmp_path, "insects").own
    (home() / "data" / "bad").mkdir()
    (home() / "data" / "bad" / "set.json").write_text("{}")
    assert [one.name for one in own.listed()] == [made.name]
    with pytest.raises(UserError, match=r"bad/set\.json: format: Field required"):
        data.load("bad")


def test_options_of_a_known_set() -> None:
    code, _, err = command("prepare", "digits", "--size", "4")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--size: makes another data set of it; give it a --name" in err


def test_commands(tmp_path: Path) -> None:
    """JSON, what was replaced, the list, and the sheet of images."""
    write(tmp_path / "one", pictures(30))
    write(tmp_path / "two", pictures(60, seed=3))
    code, out, _ = command("prepare", tmp_path / "one", "--name", "insects", "--json")
    answer = json.loads(out.splitlines()[-1])
    assert code == 0
    assert [answer[part] for part in ("train", "val", "test")] == [21, 3, 6]
    assert (answer["shape"], answer["classes"]) == ([3, 5, 6], [*CLASSES])
    assert (answer["replaced"], len(answer["digest"])) == (None, 64)
    _, out, _ = command("prepare", tmp_path / "two", "--name", "insects")
    assert f"replaced 21 training images, 6 test images, digest {answer['digest'][:16]}" in out
    _, out, _ = command("list", "--json")
    listed = {one["name"]: one for one in json.loads(out.splitlines()[-1])["data"]}
    assert (listed["insects"]["train"], listed["insects"]["shape"]) == (42, [3, 5, 6])
    assert listed["digits"]["place"] == "of scikit-learn"
    code, out, _ = command("show", "insects", "--to", tmp_path / "a.png", "--json")
    shown = json.loads(out.splitlines()[-1])
    assert shown["per_class"] == {"train": [14] * 3, "val": [2] * 3, "test": [4] * 3}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((home() / "data" / "insects").iterdir())) == 4, "the old parts are gone"


def test_another_place(tmp_path: Path) -> None:
    """`--to` and `--data-dir`, of a set of the user's own and of a known one."""
    write(tmp_path / "all", pictures(30))
    command("prepare", tmp_path / "all", "--name", "insects", "--to", tmp_path / "there")
    assert own.find("insects") is None
    with pytest.raises(UserError, match=r"unknown data set 'insects' \(there are: digits, "):
        data.load("insects")
    assert data.load("insects", tmp_path / "there").facts.classes == CLASSES
    write_hugging_face_of(tmp_path / "cifar10", 40, 20)
    command("prepare", "cifar10", "--data-dir", tmp_path, "--to", tmp_path / "there")
    before, now = (data.load("cifar10", at, val_images=8) for at in (tmp_path, tmp_path / "there"))
    assert (now.digest, now.identity) == (before.digest, before.identity)


def test_notes(tmp_path: Path) -> None:
    write(tmp_path / "train", pictures(9))
    for number in range(20):
        Image.fromarray(pictures(1, seed=number)[0]).save(tmp_path / "train/bee" / f"x{number}.png")
    write(tmp_path / "test", pictures(2))
    made = make(tmp_path, "insects")
    assert made.notes == (
        "test: no image of 1 classes, first 'cat'",
        "classes are unlike in size: 23 training images of 'bee', 3 of 'ant'",
    )


def of_test(tree: dict[str, Any]) -> dict[str, Any]:
    file: dict[str, Any] = tree["parts"]["test"]["files"][0]
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(format=3), "format: Input should be 2"),
        (lambda tree: tree.update(format=1), "of an earlier version; run `fmoe data prepare`"),
        (lambda tree: of_test(tree).update(file="../../x.parquet"), r"parts.test.files.0.file"),
        (lambda tree: of_test(tree).update(sha256="0" * 64), "damaged: its sha256"),
        (lambda tree: of_test(tree).update(bytes=10**12), "parts.test.files.0.bytes"),
        (lambda tree: tree["parts"]["test"].update(images=10**12), "parts.test.files: 1 for 10"),
        (lambda tree: tree["parts"]["test"].update(images=7), "does not fit classes"),
        (lambda tree: tree["parts"]["test"].update(rows=10**9), "parts.test.rows: 1000000000 im"),
        (lambda tree: tree["parts"]["test"].update(rows=5), "parts.test.files: 1 for 6 images"),
        (lambda tree: tree["parts"]["test"].update(digest="0" * 64), "is not that of its images"),
        (lambda tree: tree["parts"].pop("test"), "parts: no test"),
        (lambda tree: tree.update(mean=[0.5]), "mean: 1 values for 3 channels"),
        (lambda tree: tree.update(classes=["a\x1b", "b", "c"]), "cannot be printed"),
        (lambda tree: tree.update(shape=[3, 5, 7]), "its columns do not fit"),
    ],
)
def test_doctored_sets_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path, pictures(30))
    file = make(tmp_path, "insects").own.folder.local
    assert file is not None
    tree = json.loads((file / "set.json").read_text())
    change(tree)
    (file / "set.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message) as caught:
        data.load("insects")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert make(tmp_path, "insects").own.about.format == 2, "a damaged one is replaced"


def test_a_missing_part(tmp_path: Path) -> None:
    write(tmp_path, pictures(30))
    made = make(tmp_path, "insects").own
    made.folder.delete_file(made.about.parts["test"].files[0].file)
    with pytest.raises(UserError, match=r"test-\S+.parquet: missing; run `fmoe data prepare`"):
        data.load("insects")
    assert len(data.load_training("insects").train) == 21, "test is not opened"


def test_recipes_are_checked_against_its_images(tmp_path: Path) -> None:
    write(tmp_path, pictures(30, height=4, width=3))
    make(tmp_path, "insects")
    check_images(config.load("digits", ["data.name=insects"]), None)
    for name in ("crop", "cutout"):
        wide = config.load("digits", ["data.name=insects", f"data.augment.{name}=3"])
        told = f"data.augment.{name}: must be below the images' 3 pixels"
        with pytest.raises(UserError, match=told):
            check_images(wide, None)


def test_published_files_by_their_place(tmp_path: Path) -> None:
    """CIFAR-10's own files, under another name and smaller."""
    write_batches(tmp_path / "torch", X, Y)
    made = make(tmp_path / "torch", "small", wanted=Wanted((8, 8)))
    assert made.own.facts.shape == (3, 8, 8)
    assert made.own.facts.classes == data.info("cifar10").classes
    assert data.read("small", "train").labels.tolist() == Y
