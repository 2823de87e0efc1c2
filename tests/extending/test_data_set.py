"""A third party's data set, added here alone: a class, and its name in `DATA_SETS`.

Tiles has 12x12 pixels in colour, five classes, a file format of its own, and a Parquet mirror whose
column of classes is named `colour`, one of which it spells in another way.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import fmoe
from fmoe import config, data, evaluation, model_folder
from fmoe.config import Config
from fmoe.data import sets as data_sets
from fmoe.data.held_out import HeldOut, check_classes
from fmoe.data.kinds import Published
from fmoe.data.readers import PARTS, Download, Part
from fmoe.errors import UserError
from fmoe.storage.folder import Folder
from fmoe.training import joint
from fmoe.training.expert_store import ExpertStore
from pipelines.cli import main
from pipelines.data_claim import check_images
from tests.conftest import SMALL
from tests.extending.document import section
from tests.published import IMG, encode, write_batches

CODE = section("A data set")
SHAPE = CODE.SHAPE
CLASSES = CODE.CLASSES
MOST_BYTES = CODE.MOST_BYTES
Tiles = CODE.Tiles
unpacked = CODE.unpacked

COLOURS = np.array(
    [[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30], [120, 120, 120]], np.uint8
)
COUNTS: dict[Part, int] = {"train": 100, "test": 20}


@pytest.fixture(autouse=True)
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, Tiles())


def add(monkeypatch: pytest.MonkeyPatch, *new: Published) -> None:
    """As if their names had been written into `DATA_SETS`."""
    there = [each for each in data_sets.DATA_SETS if each.name not in {one.name for one in new}]
    monkeypatch.setattr(data_sets, "DATA_SETS", (*there, *new))


def tiles(part: Part) -> tuple[NDArray[np.uint8], list[int]]:
    rng = np.random.default_rng(PARTS.index(part))
    labels = [i % 5 for i in range(COUNTS[part])]
    noise = rng.integers(-25, 26, (len(labels), *SHAPE))
    return (COLOURS[labels][:, :, None, None] + noise).astype(np.uint8), labels


def write_original(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        rows = [bytes([y]) + x.tobytes() for x, y in zip(*tiles(part), strict=True)]
        (folder / f"tiles-{part}.bin").write_bytes(b"".join(rows))


def write_mirror(folder: Path, last: str = "gray") -> None:
    """As the hub has it, with a `label` that is not the class."""
    inner = folder / "tiles"
    inner.mkdir(parents=True, exist_ok=True)
    names = {"info": {"features": {"colour": {"names": [*CLASSES[:4], last]}}}}
    for part in PARTS:
        images, labels = tiles(part)
        cells = [{"bytes": encode(image), "path": None} for image in images]
        columns = {"image": pa.array(cells, IMG), "colour": labels, "label": labels[::-1]}
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(names)})
        pq.write_table(table, inner / f"{part}-00000-of-00001.parquet")


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "its own": write_original,
    "in a folder of its name": lambda folder: write_original(folder / "tiles"),
    "the hub's": write_mirror,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_loaded_and_prepared_out_of_every_layout(layout: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path)
    loaded = data.load("tiles", tmp_path)
    assert (len(loaded.train), len(loaded.val), len(loaded.test)) == (70, 30, 20)
    assert loaded.facts.classes == CLASSES
    images, labels = tiles("test")
    assert torch.equal(loaded.test.images, torch.from_numpy(images))
    assert loaded.test.labels.tolist() == labels
    prepared = data.prepare("tiles", tmp_path)
    assert data.load("tiles").digest == prepared.digest == loaded.digest
    assert data.origin("tiles") == str(data.prepared_path("tiles"))


@pytest.mark.parametrize("last", ["gray", "grey"])
def test_the_hubs_spelling_of_a_class_is_known(last: str, tmp_path: Path) -> None:
    write_mirror(tmp_path, last)
    assert len(data.read("tiles", "test", tmp_path)) == 20
    write_mirror(tmp_path, "white")
    with pytest.raises(UserError, match=r"label names are red, .*white; tiles has red, .*grey$"):
        data.read("tiles", "test", tmp_path)


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    write_original(tmp_path)
    write_mirror(tmp_path / "tiles")
    (tmp_path / "tiles" / "tiles-test.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds tiles twice, tiles/\S+ and tiles-test\.bin"):
        data.read("tiles", "train", tmp_path)


def another_column(folder: Path) -> None:
    write_mirror(folder)
    file = folder / "tiles" / "test-00000-of-00001.parquet"
    pq.write_table(pq.read_table(file).drop_columns("colour"), file)


def truncated(folder: Path) -> None:
    write_original(folder)
    file = folder / "tiles-test.bin"
    file.write_bytes(file.read_bytes()[:-1])


def beyond_the_classes(folder: Path) -> None:
    write_original(folder)
    (folder / "tiles-test.bin").write_bytes(bytes([5]) + bytes(432))


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (
        lambda folder: None,
        r"holds no tiles: expected tiles/\{train,test\}-\*\.parquet as the Hugging Face hub has "
        r"it, or the published tiles-\{train,test\}\.bin",
    ),
    "CIFAR-10": (
        lambda folder: write_batches(folder, np.zeros((5, 3, 32, 32), np.uint8), [0] * 5),
        "holds no tiles",
    ),
    "truncated": (truncated, r"tiles-test\.bin: 8659 bytes, not whole images of 433"),
    "labels": (beyond_the_classes, r"tiles-test\.bin: labels must lie in 0\.\.4, not 5\.\.5"),
    "columns": (another_column, r"no column `colour` \(has: image, label\), and tiles has one"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_files_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    write, message = WRONG[kind]
    write(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        data.read("tiles", "test", tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        data.prepare("tiles", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_its_folder_is_no_other_sets(name: str, tmp_path: Path) -> None:
    write_batches(tmp_path / "tiles", np.zeros((5, 3, 32, 32), np.uint8), [0] * 5)
    with pytest.raises(UserError, match=f"holds no {name}"):
        data.read(name, "train", tmp_path / "tiles")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL at which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_what_is_downloaded_is_its_own(
    site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, url = site
    write_original(folder)
    downloads = tuple(
        Download(f"{url}/{file.name}", hashlib.md5(file.read_bytes()).hexdigest())
        for file in folder.iterdir()
    )
    add(monkeypatch, Tiles(downloads=downloads))
    prepared = data.prepare("tiles")
    assert prepared.digest == data.load("tiles").digest == data.load("tiles", folder).digest


def test_without_downloads_a_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is fetched: neither its own files nor another set's in their place."""
    asked: list[object] = []
    monkeypatch.setattr(urllib.request, "urlopen", asked.append)
    with pytest.raises(UserError, match="tiles cannot be downloaded: give --data-dir"):
        data.prepare("tiles")
    assert asked == []
    with pytest.raises(UserError, match=r"^tiles is not here: give --data-dir"):
        data.load("tiles")


def test_unknown_names_are_answered_with_it() -> None:
    there = "unknown data set 'tile' .there are: digits, cifar10, svhn.*, tiles"
    with pytest.raises(UserError, match=there):
        data.load("tile")
    settings = config.load("digits-whole", ["data.name=tile"])
    with pytest.raises(UserError, match=there):
        check_images(settings, None)


QUICK = [
    "data.val_images=30",
    "experts.train.batch_size=20",
    "joint.batch_size=20",
    "joint.epochs=6",
    "joint.validation.attack={kind: fgsm}",
    "experts.train.validation.attack={kind: fgsm}",
    "joint.optimizer.lr=0.05",
    "joint.attack={kind: clean}",
    "evaluate.images=20",
]


def from_recipe(folder: Path) -> Config:
    file = folder / "tiles.yaml"
    file.write_text("recipe: digits-whole\nset: {data.name: tiles, data.augment.flip: true}\n")
    return config.load(str(file), [*SMALL, *QUICK])


def from_command_line(folder: Path) -> Config:
    tiles = ["data.name=tiles", "data.augment.flip=true"]
    return config.load("digits-whole", [*SMALL, *QUICK, *tiles])


def test_crop_is_checked_against_its_size() -> None:
    config.load("digits-whole", ["data.name=tiles", "data.augment.crop=11"])
    with pytest.raises(
        UserError, match=r"data\.augment\.crop: must be below the images' 12 pixels"
    ):
        config.load("digits-whole", ["data.name=tiles", "data.augment.crop=12"])


def test_a_model_of_it_is_trained_saved_loaded_evaluated_and_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = from_recipe(tmp_path)
    assert settings == from_command_line(tmp_path)
    write_original(tmp_path)
    loaded = data.load("tiles", tmp_path, val_images=settings.data.val_images)
    store, run = ExpertStore(Folder.at(tmp_path / "experts")), Folder.at(tmp_path / "run")
    store.obtain_all(settings, loaded)
    epochs = list(joint.joint_epochs(settings, loaded, store, run))
    model = joint.trained(settings, run, loaded.identity, epochs[-1].best)
    folder = Folder.at(tmp_path / "model")
    model_folder.save_model(
        folder, model.state_dict(), settings, data_digest=loaded.digest, metrics={}
    )

    again = fmoe.load(str(tmp_path / "model"))
    held_out = HeldOut.read("tiles", tmp_path)
    card = model_folder.read_card(folder)
    assert (card["classes"], card["input_shape"]) == (list(CLASSES), list(SHAPE))
    assert check_classes(card, "tiles", data.find("tiles").facts, "model") == []
    with pytest.raises(UserError, match=r"--data cifar10: its images are 3x32x32, .* 3x12x12"):
        check_classes(card, "cifar10", data.find("cifar10").facts, "model")
    test = held_out.test.held()
    found = evaluation.evaluate(again, test.images, test.labels, attacks=["fgsm"], eps=2 / 255)
    assert found.clean == 1
    assert found.images == 20

    for i, name in enumerate(CLASSES):
        Image.fromarray(test.images[i].permute(1, 2, 0).numpy()).save(tmp_path / f"{name}.png")
    pictures = [str(tmp_path / f"{name}.png") for name in CLASSES]
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path / "model"), *pictures, "--json"])
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert [each["label"] for each in answer["predictions"]] == list(CLASSES)
