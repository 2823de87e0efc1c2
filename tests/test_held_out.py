"""What a trained model is judged on: test files alone suffice, and nothing is cut out of train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmoe import data
from fmoe.data import readers
from fmoe.data.held_out import HeldOut, check_classes
from fmoe.errors import UserError
from tests.data_states import MORE, STATES, X_TEST, Y_TEST, X, made, write, write_svhn

WITHOUT_TRAIN = {
    "test files alone": "no train-*.parquet",
    "training files damaged": "train-00000-of-00001.parquet: not a readable Parquet file",
}
WITHOUT_TEST = {"training files alone": "no test-", "gone": "no such data folder"}


@pytest.mark.parametrize("state", [*STATES])
def test_what_is_read_of_each_state(state: str, tmp_path: Path) -> None:
    folder = made(state, tmp_path / "data")
    if state in WITHOUT_TEST:
        with pytest.raises(UserError, match=WITHOUT_TEST[state]):
            HeldOut.read("cifar10", folder)
        return
    found = HeldOut.read("cifar10", folder)
    test = data.read("cifar10", "test", folder)
    assert torch.equal(found.test.held().images, test.images)
    assert torch.equal(found.test.held().labels, test.labels)
    assert found.test_digest == data.digest(test)
    if state in WITHOUT_TRAIN:
        assert (found.digest, found.leaked) == (None, None)
        assert WITHOUT_TRAIN[state] in str(found.unread)
        assert (found.count_leaked(4), found.leaks(4)) == (None, [])
    else:
        assert found.digest == data.load("cifar10", folder, val_images=1).digest
        assert found.unread is None
        assert (found.count_leaked(4), found.leaks(4)) == (0, [])


def test_the_digests_are_those_of_the_data_that_are_trained_on(tmp_path: Path) -> None:
    whole = data.load("cifar10", made("same", tmp_path), val_images=2)
    found = HeldOut.read("cifar10", tmp_path)
    assert (found.digest, found.test_digest) == (whole.digest, whole.test_digest)


@pytest.mark.parametrize("count", [1, 10])
def test_a_set_that_no_validation_split_can_be_cut_from(count: int, tmp_path: Path) -> None:
    """The default split of 5,000 is more than there is."""
    write(tmp_path, train=(X[:count], [0] * count))
    assert len(HeldOut.read("cifar10", tmp_path).test) == 4
    with pytest.raises(UserError, match="val_images"):
        data.load("cifar10", tmp_path)


def test_test_files_alone_of_every_format(tmp_path: Path) -> None:
    write_svhn(tmp_path / "svhn")
    (tmp_path / "svhn" / "train_32x32.mat").unlink()
    assert HeldOut.read("svhn", tmp_path).unread is not None
    made("same in another layout", tmp_path / "batches")
    for file in (tmp_path / "batches").rglob("data_batch_*"):
        file.unlink()
    found = HeldOut.read("cifar10", tmp_path / "batches")
    assert found.unread is not None
    assert found.test_digest == HeldOut.read("cifar10", made("same", tmp_path / "same")).test_digest


def test_prepared_data_and_digits() -> None:
    train, test = data.read("digits", "train"), data.read("digits", "test")
    found = HeldOut.read("digits")
    assert (found.digest, found.unread) == (data.digest(train, test), None)
    colours = [split.images.expand(-1, 3, 8, 8).repeat(1, 1, 4, 4) for split in (train, test)]
    file = data.prepared_path("cifar10")
    readers.write_prepared(file, (colours[0], train.labels), (colours[1], test.labels))
    assert len(HeldOut.read("cifar10").test) == len(test)


def test_leaks_are_counted_among_the_images_that_are_judged(tmp_path: Path) -> None:
    """The training labels do not matter: the picture was seen."""
    test = np.concatenate([X_TEST[:2], X[3:5]])
    write(tmp_path, test=(test, Y_TEST))
    found = HeldOut.read("cifar10", tmp_path)
    assert found.leaked is not None
    assert found.leaked.tolist() == [False, False, True, True]
    assert [found.count_leaked(judged) for judged in (2, 3, 4)] == [0, 1, 2]
    assert found.leaks(2) == []
    assert found.leaks(4) == ["test-in-training: 2 of 4 test images are also among the training "
                              "images"]  # fmt: skip


def test_few_leaks_are_no_flag(tmp_path: Path) -> None:
    """1 of 200 is the limit; the same image twice counts twice."""
    rng = np.random.default_rng(5)
    test = rng.integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    test[7] = X[0]
    write(tmp_path / "one", train=MORE, test=(test, [0] * 200))
    assert HeldOut.read("cifar10", tmp_path / "one").leaks(200) == []
    test[8] = X[0]
    write(tmp_path / "two", train=MORE, test=(test, [0] * 200))
    assert "2 of 200" in HeldOut.read("cifar10", tmp_path / "two").leaks(200)[0]


def card(name: str, **other: Any) -> dict[str, Any]:
    info = data.info(name)
    return {"classes": [*info.classes], "input_shape": [*info.shape], **other}


def test_class_names() -> None:
    assert check_classes(card("cifar10"), "cifar10", data.find("cifar10").facts, "m") == []
    assert check_classes(card("svhn"), "svhn", data.find("svhn").facts, "m") == []
    (flag,) = check_classes(card("cifar10"), "svhn", data.find("svhn").facts, "m")
    assert flag.startswith(
        "other-classes: what is '0' in svhn is 'airplane' to the model (10 of 10"
    )


def test_the_same_class_names_in_another_order_are_others() -> None:
    names = [*data.info("cifar10").classes]
    names[3], names[5] = names[5], names[3]
    (flag,) = check_classes(
        card("cifar10", classes=names), "cifar10", data.find("cifar10").facts, "m"
    )
    assert "what is 'cat' in cifar10 is 'dog' to the model (2 of 10" in flag


def test_what_cannot_be_judged_at_all() -> None:
    with pytest.raises(UserError, match="svhn: its images are 3x32x32, and m takes 1x8x8"):
        check_classes(card("digits"), "svhn", data.find("svhn").facts, "m")
    with pytest.raises(UserError, match="svhn: has 10 classes, and m knows 9"):
        check_classes(card("svhn", classes=[*"012345678"]), "svhn", data.find("svhn").facts, "m")
