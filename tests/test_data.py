"""Digits, the validation split, augmentation by hand, batches that do not depend on the ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fmoe import data
from fmoe.data import Data, Split
from fmoe.data import sets as data_sets
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.errors import UserError
from fmoe.numerics.draw import Draw

# sha256 over repr(shape) and bytes of rint(255/16 * scikit-learn's images) as uint8 and of the
# labels as int64, of RandomState(0).permutation(1797)[360:] (train), then of [:360] (test);
# computed apart from the library.
DIGITS_DIGEST = "f77bc4beca785cbf97268d47d9e77dff396090f4116928a1f379971feeaee2a6"


def identities(split: Split) -> set[bytes]:
    """Images by value: no two of the 1,797 digits are the same."""
    return {image.numpy().tobytes() for image in split.images}


def numbered(count: int, shape: tuple[int, int, int] = (1, 2, 2)) -> Split:
    """Image i is filled with the value i and labelled i."""
    labels = torch.arange(count)
    return Split(labels.to(torch.uint8)[:, None, None, None].expand(count, *shape), labels)


def noisy(count: int) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count))


class Fixed(Draw):
    """Gives out integers by hand instead of drawn ones."""

    def __init__(self, *answers: list[int]):
        super().__init__(0)
        self.answers = list(answers)

    def integers(self, high: int, like: Tensor) -> Tensor:
        return torch.tensor(self.answers.pop(0))


def test_digits_sizes_and_types(digits: Data) -> None:
    sizes = {"train": 1300, "val": 137, "test": 360}  # 1797 - 360 - 137 = 1300
    for name, size in sizes.items():
        split: Split = getattr(digits, name)
        assert split.images.shape == (size, 1, 8, 8)
        assert split.images.dtype == torch.uint8
        assert split.labels.shape == (size,)
        assert split.labels.dtype == torch.int64
        assert set(split.labels.tolist()) == set(range(10))
        assert len(split) == size
    assert digits.name == "digits"
    assert digits.facts.shape == (1, 8, 8)
    assert len(digits.facts.classes) == 10


def test_digits_use_the_whole_range_of_pixels(digits: Data) -> None:
    assert digits.train.images.min() == 0
    assert digits.train.images.max() == 255  # 16 * 255/16


def test_digits_digest_is_golden(digits: Data) -> None:
    assert digits.digest == DIGITS_DIGEST


def test_digest_does_not_depend_on_the_validation_split() -> None:
    assert data.load("digits", val_images=50).digest == DIGITS_DIGEST


def test_digest_covers_pixels_labels_and_split() -> None:
    train, test = numbered(6), numbered(3)
    digest = data.digest(train, test)
    pixel, labels = train.images.clone(), test.labels.clone()
    pixel[0, 0, 0, 0] += 1
    labels[2] = 0
    assert data.digest(Split(pixel, train.labels), test) != digest
    assert data.digest(train, Split(test.images, labels)) != digest
    assert data.digest(test, train) != digest
    assert data.digest(numbered(6), numbered(3)) == digest


def test_digits_mean_and_std_are_those_of_the_training_pixels(digits: Data) -> None:
    pixels = digits.train.pixels()
    assert digits.facts.mean == pytest.approx((pixels.mean().item(),), abs=0.002)
    assert digits.facts.std == pytest.approx((pixels.std().item(),), abs=0.002)


def test_validation_split_is_disjoint_and_the_union_is_all(digits: Data) -> None:
    train, test = data.read("digits", "train"), data.read("digits", "test")
    parts = [identities(part) for part in (digits.train, digits.val, digits.test)]
    assert [len(part) for part in parts] == [1300, 137, 360]
    assert len(set.union(*parts)) == 1797
    assert parts[0] | parts[1] == identities(train)
    assert parts[2] == identities(test)


def test_validation_split_is_fixed(digits: Data) -> None:
    torch.manual_seed(99)
    np.random.seed(99)
    again = data.load("digits")
    assert torch.equal(again.val.images, digits.val.images)
    assert torch.equal(again.train.images, digits.train.images)
    train = data.read("digits", "train")
    rows = np.sort(np.random.RandomState(0).permutation(1437)[:137])
    assert torch.equal(digits.val.labels, train.labels[torch.from_numpy(rows)])
    # the same computed apart from the library, at numpy 2.4
    assert digits.val.labels[:12].tolist() == [4, 4, 2, 4, 2, 0, 3, 2, 7, 2, 1, 5]


def test_splits_are_cut_by_rows_and_given_as_pixels() -> None:
    part = numbered(256)[[0, 51, 255]]
    assert part.labels.tolist() == [0, 51, 255]
    pixels = part.pixels()
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert pixels[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 1])  # 51/255 = 1/5


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 120),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_all_ranks_together_see_an_image_at_most_once_an_epoch(
    count: int, batch_size: int, world_size: int, seed: int
) -> None:
    batch_size = min(batch_size, count)
    world_size = min(world_size, batch_size)
    seen: list[int] = []
    for rank in range(world_size):
        batches = Batches(numbered(count), batch_size, Augment(), seed, rank, world_size)
        parts = list(batches.epoch(3))
        assert len(parts) == len(batches) == count // batch_size
        for x, y in parts:
            assert len(y) in (batch_size // world_size, batch_size // world_size + 1)
            # images come with their own labels
            assert (x[:, 0, 0, 0] * 255).round().long().tolist() == y.tolist()
            seen += y.tolist()
    assert len(seen) == len(set(seen)) == count - count % batch_size


def test_incomplete_batch_is_left_out() -> None:
    # 23 images in batches of 5: four batches, 3 images left for another epoch
    batches = Batches(numbered(23), 5, Augment(), seed=0)
    assert len(batches) == 4
    assert [len(y) for _, y in batches.epoch(0)] == [5, 5, 5, 5]


def test_every_epoch_and_seed_has_an_order_of_its_own_and_keeps_it() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(numbered(40), 10, Augment(), seed)
        return torch.cat([y for _, y in batches.epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert sorted(order(0, 0)) == sorted(order(0, 1)) == list(range(40))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_batches_concatenate_to_those_of_one_rank(world_size: int) -> None:
    whole = Batches(noisy(50), 16, Augment(crop=4, flip=True), seed=1)
    ranks = [
        replace(whole, rank=rank, world_size=world_size).epoch(2) for rank in range(world_size)
    ]
    compared = 0
    for (x, y), *shares in zip(whole.epoch(2), *ranks, strict=True):
        assert torch.equal(torch.cat([share[0] for share in shares]), x)
        assert torch.equal(torch.cat([share[1] for share in shares]), y)
        compared += len(y)
    assert compared == 48


def test_batches_do_not_depend_on_the_number_of_threads() -> None:
    batches = Batches(noisy(512), 256, Augment(crop=4, flip=True), seed=1)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            runs.append(list(batches.epoch(0)))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for (x, y), (x_again, y_again) in zip(runs[0], run, strict=True):
            assert torch.equal(x, x_again)
            assert torch.equal(y, y_again)


def test_batches_leave_the_images_as_they_are() -> None:
    split = noisy(8)
    before = split.images.clone()
    list(Batches(split, 8, Augment(crop=4, flip=True), seed=0).epoch(0))
    assert torch.equal(split.images, before)


def test_cutout_by_hand() -> None:
    """A square of 3 around (1, 0) and one around (2, 3); the edges cut some off."""
    x = torch.zeros(2, 1, 3, 4)
    out = Augment(cutout=3)(x, Fixed([1, 2], [0, 3]))
    assert (2 * out[0, 0]).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert (2 * out[1, 0]).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert torch.equal(
        Augment(cutout=2)(x[:1], Fixed([1], [1]))[0, 0, :2, :2], torch.full((2, 2), 0.5)
    )
    everything = Augment(cutout=512)(x, Fixed([0, 2], [0, 3]))
    assert torch.equal(everything, torch.full_like(x, 0.5))


def test_cutout_leaves_crops_and_mirrors_as_they_are() -> None:
    split = noisy(8)
    plain, cut = (
        next(Batches(split, 8, Augment(crop=4, flip=True, cutout=side), seed=0).epoch(0))[0]
        for side in (0, 16)
    )
    grey = (cut == 0.5).all(1, keepdim=True).expand_as(cut)
    assert torch.equal(cut[~grey], plain[~grey])
    assert 8 * 8 <= grey[:, 0].sum((1, 2)).min() <= grey[:, 0].sum((1, 2)).max() <= 16 * 16


def test_images_of_an_epochs_size_are_means_of_those_of_the_data() -> None:
    """The last size holds for all epochs that follow; a side that is not the height is in
    proportion."""
    split = noisy(4)
    whole = Batches(split, 4, Augment(crop=4, flip=True), seed=1)
    small = replace(whole, sizes=(8, 32, 16))
    for epoch, size in enumerate((8, 32, 16, 16)):
        ((x, y),), ((found, labels),) = list(whole.epoch(epoch)), list(small.epoch(epoch))
        means = x.unfold(2, 32 // size, 32 // size).unfold(3, 32 // size, 32 // size).mean((4, 5))
        torch.testing.assert_close(found, means)
        assert torch.equal(labels, y)
    wide = Batches(Split(split.images[:, :, :16], split.labels), 4, Augment(), 0, sizes=(8,))
    ((x, _),) = wide.epoch(0)
    assert x.shape == (4, 3, 8, 16)


def test_batches_move_to_a_device() -> None:
    batches = Batches(numbered(6), 3, Augment(), seed=0)
    moved = batches.to(torch.device("cpu"))
    assert moved.batch_size == 3
    assert torch.equal(moved.images.held().images, batches.images.held().images)


def test_augment_by_hand() -> None:
    image = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    x = image.expand(3, 1, 3, 4)
    # One pixel of reflected padding:    6  5  6  7  8  7
    #                                    2  1  2  3  4  3
    #                                    6  5  6  7  8  7
    #                                   10  9 10 11 12 11
    #                                    6  5  6  7  8  7
    # image 0: rows from 2, columns from 0; not mirrored
    # image 1: the same, mirrored
    # image 2: rows and columns from 1, which is the image itself
    out = Augment(crop=1, flip=True)(x, Fixed([2, 2, 1], [0, 0, 1], [0, 1, 0]))
    assert out[0, 0].tolist() == [[6, 5, 6, 7], [10, 9, 10, 11], [6, 5, 6, 7]]
    assert out[1, 0].tolist() == [[7, 6, 5, 6], [11, 10, 9, 10], [7, 6, 5, 6]]
    assert torch.equal(out[2, 0], image)


def test_crop_equals_padding_and_slicing_image_by_image() -> None:
    x = torch.rand(40, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    out = Augment(crop=2)(x, Draw(5, "crop"))
    draw = Draw(5, "crop")
    tops, lefts = draw.integers(5, x).tolist(), draw.integers(5, x).tolist()  # 0..2*2
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        padded = F.pad(x[i : i + 1], (2, 2, 2, 2), mode="reflect")
        assert torch.equal(out[i : i + 1], padded[:, :, top : top + 6, left : left + 7])
    assert len(set(zip(tops, lefts, strict=True))) > 10


def test_flip_mirrors_columns_of_the_drawn_half() -> None:
    x = torch.rand(1000, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    out = Augment(flip=True)(x, Draw(5, "flip"))
    flipped = Draw(5, "flip").integers(2, x).bool()
    assert torch.equal(out[flipped], x[flipped][..., [2, 1, 0]])
    assert torch.equal(out[~flipped], x[~flipped])
    assert 420 < flipped.sum().item() < 580  # 500 with a standard deviation of 16


def test_no_augmentation_by_default() -> None:
    x = torch.rand(4, 3, 5, 5)
    assert Augment()(x, Draw(0)) is x


@pytest.mark.parametrize("name", data_sets.names())
def test_facts_of_a_data_set_fit_each_other(name: str) -> None:
    info = data.info(name)
    channels, height, width = info.shape
    assert len(info.mean) == len(info.std) == channels
    assert all(0 < mean < 1 for mean in info.mean)
    assert all(0 < std <= 0.5 for std in info.std)  # of values in [0,1]
    assert min(height, width) >= 8
    assert len(set(info.classes)) == len(info.classes) > 1
    assert info.val_images > 0
    assert re.fullmatch("[a-z][a-z0-9-]*", name), "a folder and a file go by it"
    assert data_sets.names().count(name) == 1


def test_unknown_data_set_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'cifar'.*digits, cifar10, svhn"):
        data.load("cifar")


@pytest.mark.parametrize("count", [1437, 5000, 0, -1])
def test_impossible_val_images_name_the_key(count: int) -> None:
    with pytest.raises(UserError, match=rf"data\.val_images: {count} .* 1437 training images"):
        data.load("digits", val_images=count)


def test_val_images_may_leave_a_single_training_image() -> None:
    loaded = data.load("digits", val_images=1436)
    assert (len(loaded.train), len(loaded.val)) == (1, 1436)


def test_batch_size_beyond_the_images_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size: 11 is more than the 10 training images"):
        Batches(numbered(10), 11, Augment(), seed=0)


def test_batch_size_below_the_workers_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size: 2 for 3 workers"):
        Batches(numbered(10), 2, Augment(), seed=0, world_size=3)


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_missing_data_set_names_the_remedy(name: str) -> None:
    with pytest.raises(UserError, match=rf"fmoe data prepare {name}.*--data-dir"):
        data.load(name)


def test_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such data folder"):
        data.load("cifar10", tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
def test_folder_without_the_data_set_says_what_is_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"holds no {name}: expected {name}/.*parquet"):
        data.load(name, tmp_path)


def test_data_folder_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMOE_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="elsewhere: no such data folder"):
        data.load("cifar10")


IMAGES = np.zeros((2, 1, 8, 8), np.uint8)
FAULTS: dict[str, Callable[[], Split]] = {
    "labels must lie in 0..9": lambda: data.check("digits", "train", IMAGES, [0, 10]),
    "there must be some": lambda: data.check("digits", "train", IMAGES[:0], []),
    "with 1 labels": lambda: data.check("digits", "train", IMAGES, [0]),
    "float64 images": lambda: data.check("digits", "train", IMAGES / 255, [0, 1]),
    r"expected uint8 \[N,3,32,32\]": lambda: data.check("svhn", "train", IMAGES, [0, 1]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_arrays_that_are_not_the_data_set_are_refused(message: str) -> None:
    with pytest.raises(UserError, match=message):
        FAULTS[message]()


def test_preparing_digits_reads_them_and_writes_nothing() -> None:
    assert data.prepare("digits").digest == DIGITS_DIGEST
    assert not data.prepared_path("digits").exists()
