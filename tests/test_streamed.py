"""Images that stay in files: every one once an epoch, the same ones whatever the workers, the same
bits as in memory where a window holds all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from fmoe import assembly, config, data, training
from fmoe.data import Data, Images, Split, own, shards, streamed
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.data.held_out import HeldOut
from fmoe.data.listing import shown
from fmoe.data.making import make
from fmoe.data.readers import Arrays
from fmoe.data.streamed import Streamed, in_thread
from fmoe.errors import UserError
from fmoe.numerics.draw import Draw
from fmoe.numerics.worker import Worker
from fmoe.paths import home
from fmoe.storage.checkpoint import Checkpoints, copy_state
from fmoe.storage.folder import Folder, sha256
from fmoe.storage.tensors import Tensors
from fmoe.training import Epoch
from fmoe.training.checks import check_kept
from fmoe.training.expert_store import expert_key
from fmoe.training.joint import joint_key
from tests.conftest import MEMBER, SMALL

IMAGES, ROWS, AT_ONCE = 43, 4, 3
"""Of a set, in a file, files of a window."""
SHAPE = (3, 5, 6)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a few images, windows of a few files."""
    monkeypatch.setattr(shards, "FILE_BYTES", ROWS * 3 * 5 * 6)
    monkeypatch.setattr(streamed, "FILES_AT_ONCE", AT_ONCE)


def pixels(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """[N,C,H,W], no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def prepared(folder: Path, name: str = "numbers", count: int = IMAGES) -> own.Own:
    file = folder / f"{name}.npz"
    np.savez(
        file,
        x_train=pixels(count),
        y_train=np.arange(count) % 3,
        x_test=pixels(12, 1),
        y_test=np.arange(12) % 3,
    )
    return make(file, name).own


def of(made: own.Own) -> Streamed:
    return Streamed.of(made.shards("train"))


def seen(images: Images, epoch: int, rank: int = 0, world: int = 1, first: int = 0) -> list[Split]:
    """What each step of an epoch sees of it, in bytes."""
    batches = Batches(images, 5, Augment(), 7, rank, world)
    return [
        Split((batch.x * 255).round().to(torch.uint8), batch.y)
        for batch in batches.of_epoch(epoch, first)
    ]


def whole(splits: Sequence[Split]) -> list[bytes]:
    return [image.numpy().tobytes() for split in splits for image in split.images]


def test_every_image_once_an_epoch(small: None, tmp_path: Path) -> None:
    images = of(prepared(tmp_path))[torch.arange(40)]
    epochs = [whole(seen(images, epoch)) for epoch in range(3)]
    wanted = sorted(image.tobytes() for image in pixels(IMAGES)[:40])
    assert [sorted(epoch) for epoch in epochs] == [wanted] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert whole(seen(images, 1)) == epochs[1]
    labels = {image.tobytes(): row % 3 for row, image in enumerate(pixels(IMAGES))}
    for split in seen(images, 0):
        assert [labels[image] for image in whole([split])] == split.labels.tolist()


def test_the_same_images_whatever_the_number_of_workers(small: None, tmp_path: Path) -> None:
    images = of(prepared(tmp_path))
    alone = seen(images, 2)
    for world in (2, 3, 5):
        ranks = [seen(images, 2, rank, world) for rank in range(world)]
        for step, batch in enumerate(alone):
            shares = [rank[step] for rank in ranks]
            assert whole(shares) == whole([batch])
            assert torch.equal(torch.cat([share.labels for share in shares]), batch.labels)


def test_it_goes_on_within_an_epoch(small: None, tmp_path: Path) -> None:
    images = of(prepared(tmp_path))
    assert whole(seen(images, 1, first=3)) == whole(seen(images, 1)[3:])
    assert seen(images, 1, first=8) == []


def test_a_window_is_all_that_is_read_ahead(small: None, tmp_path: Path) -> None:
    """A file is read once an epoch, and no more than a window's at a time."""
    made = prepared(tmp_path)
    read: list[list[int]] = []

    def ahead(one: streamed.Read, wanted: Sequence[shards.Rows]) -> Iterator[Arrays]:
        for places in wanted:
            read.append(sorted({int(place) // ROWS for place in places}))
            yield one(places)

    images = replace(of(made), ahead=ahead)
    list(Batches(images, 1, Augment(), 0).of_epoch(0))
    assert [len(files) for files in read] == [AT_ONCE, AT_ONCE, AT_ONCE, 2]
    assert sorted(file for files in read for file in files) == list(range(11))
    first = read.copy()
    read.clear()
    list(Batches(images, 1, Augment(), 0).of_epoch(1))
    assert read != first, "another epoch has other windows"


def test_one_window_is_the_order_of_memory(small: None, tmp_path: Path) -> None:
    made = prepared(tmp_path, count=AT_ONCE * ROWS)
    images = of(made)
    assert len(made.about.parts["train"].files) == AT_ONCE
    for epoch in range(2):
        assert whole(seen(images, epoch)) == whole(seen(images.held(), epoch))


def test_validation_images_lie_together(small: None, tmp_path: Path) -> None:
    """They are those of memory, cut out of train, and training does not read their files."""
    prepared(tmp_path)
    held = data.load("numbers", val_images=8)
    there = data.load("numbers", val_images=8, stream=True)
    for kept, split in ((there.train, held.train), (there.val, held.val), (there.test, held.test)):
        assert torch.equal(kept.held().images, split.images)
        assert torch.equal(kept.held().labels, split.labels)
    assert isinstance(there.train, Streamed)
    assert isinstance(there.val, Streamed)
    files = [set((part.places // ROWS).tolist()) for part in (there.train, there.val)]
    assert files[1] == {0, 1}
    assert not files[0] & files[1]
    assert (there.digest, there.test_digest) == (held.digest, held.test_digest)
    assert there.identity == replace(held.identity, streamed=True)


def test_what_is_streamed_is_trained_otherwise(tmp_path: Path) -> None:
    """The order is another one, and so are the keys."""
    prepared(tmp_path)
    chosen = config.load("digits-whole", ["data.name=numbers", "data.val_images=8"])
    held, there = (data.load("numbers", val_images=8, stream=how) for how in (False, True))
    assert joint_key(chosen, held.identity) != joint_key(chosen, there.identity)
    assert expert_key(chosen, MEMBER, held.identity) != expert_key(chosen, MEMBER, there.identity)


def test_size_decides_where_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path)
    monkeypatch.setattr(data.reading, "LARGEST_HELD", IMAGES * 90)
    assert not data.load("numbers", val_images=8, stream=None).identity.streamed
    monkeypatch.setattr(data.reading, "LARGEST_HELD", IMAGES * 90 - 1)
    assert data.load("numbers", val_images=8, stream=None).identity.streamed
    judged = HeldOut.read("numbers")
    assert isinstance(judged.test, Streamed)
    assert judged.test_digest == data.load("numbers", val_images=8).test_digest
    assert judged.per_class == [4, 4, 4]
    about, first = shown("numbers")
    assert about["per_class"]["train"] == [15, 14, 14]
    assert len(first) == IMAGES


def test_a_known_set_is_written_to_files_once(tmp_path: Path) -> None:
    copies = Folder.at(tmp_path / "streamed")
    held = data.load("digits")
    there = data.load("digits", stream=True, copies=copies)
    assert torch.equal(there.train.held().images, held.train.images)
    assert torch.equal(there.val.held().images, held.val.images)
    assert (there.digest, there.train_digest) == (held.digest, held.train_digest)
    (folder,) = (tmp_path / "streamed").iterdir()
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    data.load("digits", stream=True, copies=copies)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    (folder / "set.json").write_text("{}")
    again = data.load("digits", stream=True, copies=copies)
    assert again.digest == held.digest


def test_leaks_are_found_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels(12)
    file = tmp_path / "a.npz"
    labels = np.arange(12) % 3
    np.savez(file, x_train=images, y_train=labels, x_test=images[[5, 0, 1]], y_test=[2, 0, 1])
    make(file, "leaky")
    for largest in (2**30, 0):
        monkeypatch.setattr(data.reading, "LARGEST_HELD", largest)
        leaked = HeldOut.read("leaky").leaked
        assert leaked is not None
        assert leaked.tolist() == [True] * 3


EPOCHS = 2


def settings() -> config.Config:
    return config.load(
        "digits-whole",
        [
            *SMALL,
            "experts.roles.fgsm.count=0",
            f"joint.epochs={EPOCHS}",
            "joint.batch_size=16",
            "joint.attack={kind: pgd, eps: 0.1, steps: [1, 2]}",
        ],
    )


def running(images: Data[Images], folder: Path | None, **how: Any) -> tuple[Any, Iterator[Epoch]]:
    chosen = settings()
    model = assembly.seeded_mixture(chosen)
    joint, few = chosen.joint, images.train[torch.arange(80)]
    kept = Checkpoints(Folder.at(folder), "key") if folder else None
    made = training.Training(joint, joint.attack, few, images.val, chosen.data.augment)
    return model, training.epochs(model, made, checkpoints=kept, **how)


def trained(images: Data[Images], folder: Path | None = None) -> Tensors:
    model, epochs = running(images, folder)
    list(epochs)
    return copy_state(model)


class Stopped(Exception):
    pass


def test_training_is_that_of_memory_and_goes_on_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One window: the same bits as in memory; several: as without the interruption."""
    monkeypatch.setattr(shards, "FILE_BYTES", 64 * 10)
    there = data.load("digits", stream=True, copies=Folder.at(tmp_path / "streamed"))
    monkeypatch.setattr(streamed, "FILES_AT_ONCE", 10_000)
    assert same(trained(there), trained(data.load("digits")))
    monkeypatch.setattr(streamed, "FILES_AT_ONCE", 3)
    uninterrupted = trained(there)
    assert not same(uninterrupted, trained(data.load("digits")))

    def stop(epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (1, 3):
            raise Stopped

    _, epochs = running(there, tmp_path / "run", progress=stop, minutes=1e-9)
    with pytest.raises(Stopped):
        list(epochs)
    assert same(trained(there, tmp_path / "run"), uninterrupted)


def same(one: Tensors, other: Tensors) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_warm_starts_need_memory(tmp_path: Path) -> None:
    prepared(tmp_path)
    there, held = (data.load("numbers", val_images=8, stream=how) for how in (True, False))
    phase = settings().joint.model_copy(update={"warm_start": True})
    check_kept(phase, held.train)
    with pytest.raises(UserError, match=r"warm_start: it keeps a perturbation of every image"):
        check_kept(phase, there.train)
    made = training.Training(phase, phase.attack, there.train, there.val)
    with pytest.raises(UserError, match=r"set warm_start: false, or data\.stream: false"):
        made.trainer(assembly.seeded_mixture(settings()), Worker())


def test_what_does_not_fit_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepared(tmp_path)

    class Little:
        available = 2 * 90 * IMAGES - 1

    monkeypatch.setattr("psutil.virtual_memory", lambda: Little)
    with pytest.raises(UserError, match=r"numbers: 43 images of 3x5x6 take .* data\.stream=true"):
        of(made).held()
    assert len(of(made)[:42].held()) == 42


def written(table: pa.Table, **how: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=False, **how)
    return bytes(sink.getvalue())


def cells(count: int, size: int = 90) -> pa.Array:
    return pa.array([bytes(size)] * count, pa.binary(size))


def table(count: int, label: Any = 0, size: int = 90) -> pa.Table:
    return pa.table({"image": cells(count, size), "label": pa.array([label] * count, pa.int64())})


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"PAR1", "damaged"),
        (written(table(ROWS + 1)), f"it does not hold {ROWS} images"),
        (written(table(ROWS), row_group_size=1), f"it does not hold {ROWS} images"),
        (written(table(ROWS, size=91)), "its columns do not fit images of 90 bytes"),
        (written(table(ROWS, label=3)), r"labels must lie in 0\.\.2, not 3\.\.3"),
        (written(table(ROWS, label=None)), "it has empty cells"),
        (written(pa.table({"image": cells(ROWS)})), "its columns do not fit"),
    ],
)
def test_files_that_others_have_written(
    file: bytes, message: str, small: None, tmp_path: Path
) -> None:
    """With the digest of what is in them, so that it is their contents that are refused."""
    made = prepared(tmp_path)
    folder = made.folder.local
    assert folder is not None
    tree = json.loads((folder / "set.json").read_text())
    entry = tree["parts"]["train"]["files"][0]
    (folder / entry["file"]).write_bytes(file)
    entry |= {"sha256": sha256(file), "bytes": len(file)}
    (folder / "set.json").write_text(json.dumps(tree))
    found = own.find("numbers")
    assert found is not None
    with pytest.raises(UserError, match=message) as caught:
        seen(of(found), 0)
    assert str(caught.value).startswith(f"{folder}/{entry['file']}: ")
    assert len(str(caught.value).splitlines()) == 1


def lost(file: Path) -> None:
    file.unlink()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lost, "missing"), (cut_off, "its sha256 is not that of the set"), (longer, "at most")],
)
def test_files_that_are_not_whole(
    spoil: Callable[[Path], None], message: str, small: None, tmp_path: Path
) -> None:
    made = prepared(tmp_path)
    assert made.folder.local is not None
    file = made.folder.local / made.about.parts["train"].files[3].file
    spoil(file)
    with pytest.raises(UserError, match=message) as caught:
        seen(of(made), 0)
    assert str(caught.value).startswith(str(file))
    assert "run `fmoe data prepare` again" in str(caught.value)


def test_what_reads_ahead_keeps_order_and_raises() -> None:
    def read(rows: shards.Rows) -> Arrays:
        if rows[0] == 3:
            raise UserError("three")
        return rows, rows

    wanted = [np.array([number]) for number in range(5)]
    found = in_thread(read, wanted)
    assert [int(next(found)[1][0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three"):
        next(found)
    assert list(in_thread(read, [])) == []


def test_order_is_drawn_of_the_seed_alone(small: None, tmp_path: Path) -> None:
    images = of(prepared(tmp_path))
    orders = [images.order(Draw(seed, "shuffle", 0)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert not (home() / "streamed").exists()
