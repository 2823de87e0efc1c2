"""The data sets that have a name: one class each, and the tuple of them.

A new one is a class here and its name in `DATA_SETS`. It says its facts and how its files are read:
`hub` for the Hugging Face hub's Parquet, `originals` for files of another format (each format is
a module of `fmoe.data.readers`), `downloads` for `fmoe data prepare`. Nothing else asks for a name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fmoe.data.kinds import Embedded, Info, Published
from fmoe.data.readers import Arrays, Download, Hub, Layout, Part, cifar, idx, svhn_mat
from fmoe.errors import UserError

TEN_DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_ON_THE_HUB = ("T - shirt / top", *FASHION[1:])
CIFAR100 = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver"),
    *("bed", "bee", "beetle", "bicycle", "bottle"),
    *("bowl", "boy", "bridge", "bus", "butterfly"),
    *("camel", "can", "castle", "caterpillar", "cattle"),
    *("chair", "chimpanzee", "clock", "cloud", "cockroach"),
    *("couch", "crab", "crocodile", "cup", "dinosaur"),
    *("dolphin", "elephant", "flatfish", "forest", "fox"),
    *("girl", "hamster", "house", "kangaroo", "keyboard"),
    *("lamp", "lawn_mower", "leopard", "lion", "lizard"),
    *("lobster", "man", "maple_tree", "motorcycle", "mountain"),
    *("mouse", "mushroom", "oak_tree", "orange", "orchid"),
    *("otter", "palm_tree", "pear", "pickup_truck", "pine_tree"),
    *("plain", "plate", "poppy", "porcupine", "possum"),
    *("rabbit", "raccoon", "ray", "road", "rocket"),
    *("rose", "sea", "seal", "shark", "shrew"),
    *("skunk", "skyscraper", "snail", "snake", "spider"),
    *("squirrel", "streetcar", "sunflower", "sweet_pepper", "table"),
    *("tank", "telephone", "television", "tiger", "tractor"),
    *("train", "trout", "tulip", "turtle", "wardrobe"),
    *("whale", "willow_tree", "wolf", "woman", "worm"),
)


class Digits(Embedded):
    """scikit-learn's 8x8 scans, 0..16 scaled to 0..255; a fixed 360 of 1,797 are the test split."""

    name: Literal["digits"] = "digits"
    info: Info = Info((1, 8, 8), TEN_DIGITS, (0.3053,), (0.3760,), 137)
    images: tuple[int, int] | None = (1437, 360)
    origin: str = "of scikit-learn"
    test_images: int = 360

    def read(self, part: Part) -> Arrays:
        from sklearn.datasets import load_digits

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
        order = np.random.RandomState(0).permutation(len(images))
        rows = order[: self.test_images] if part == "test" else order[self.test_images :]
        return images[rows], bunch.target[rows]


class Cifar10(Published):
    """CIFAR-10 (Krizhevsky 2009)."""

    name: Literal["cifar10"] = "cifar10"
    images: tuple[int, int] | None = (50_000, 10_000)
    info: Info = Info(
        (3, 32, 32),
        CIFAR10,
        (0.4914, 0.4822, 0.4465),
        (0.2470, 0.2435, 0.2616),
        5000,
    )
    hub: Hub | None = Hub(config="plain_text")
    original: str | None = "cifar-10-python.tar.gz"
    downloads: tuple[Download, ...] = (
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
        ),
    )
    pickles: cifar.Pickles = cifar.Pickles(
        title="CIFAR-10",
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        alike=r"data_batch_\d+|test_batch",
        meta="batches.meta",
        labels="labels",
        names="label_names",
    )

    def originals(self, place: Path) -> list[Layout]:
        return cifar.found(self.kind, self.pickles, place)


class Cifar100(Published):
    """CIFAR-100 (Krizhevsky 2009) with its 100 fine labels; the 20 coarse ones are not read."""

    name: Literal["cifar100"] = "cifar100"
    images: tuple[int, int] | None = (50_000, 10_000)
    info: Info = Info(
        (3, 32, 32), CIFAR100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 5000
    )
    hub: Hub | None = Hub(
        config="cifar100",
        label="fine_label",
        names=tuple("cra" if name == "crab" else name for name in CIFAR100),
    )
    original: str | None = "cifar-100-python.tar.gz"
    downloads: tuple[Download, ...] = (
        Download(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
        ),
    )
    pickles: cifar.Pickles = cifar.Pickles(
        title="CIFAR-100",
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        alike="train|test",
        meta="meta",
        labels="fine_labels",
        names="fine_label_names",
        most_bytes=256 << 20,  # train has 155 MB, or 232 MB of Python 3
    )

    def originals(self, place: Path) -> list[Layout]:
        return cifar.found(self.kind, self.pickles, place)


class Svhn(Published):
    """SVHN's cropped digits (Netzer et al. 2011), without `extra`."""

    name: Literal["svhn"] = "svhn"
    images: tuple[int, int] | None = (73_257, 26_032)
    info: Info = Info(
        (3, 32, 32), TEN_DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 5000
    )
    hub: Hub | None = Hub(config="cropped_digits", others=("full_numbers",))
    original: str | None = "{train,test}_32x32.mat"
    downloads: tuple[Download, ...] = (
        Download(
            "http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            md5="e26dedcc434d2e4c54c9b2d4a06d8373",
        ),
        Download(
            "http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            md5="eb5a983be6a315427106f1b164d9cef3",
        ),
    )

    def originals(self, place: Path) -> list[Layout]:
        return svhn_mat.found(self.kind, place)


class InIdx(Published):
    """A set in MNIST's format. torchvision: the folder in which that library keeps it."""

    torchvision: str

    @property
    def folders(self) -> frozenset[str]:
        return super().folders | {self.torchvision}

    def originals(self, place: Path) -> list[Layout]:
        return idx.found(place, self.torchvision)


class Mnist(InIdx):
    """MNIST (LeCun 1998)."""

    name: Literal["mnist"] = "mnist"
    images: tuple[int, int] | None = (60_000, 10_000)
    torchvision: str = "MNIST"
    info: Info = Info((1, 28, 28), TEN_DIGITS, (0.1307,), (0.3081,), 5000)
    hub: Hub | None = Hub(config="mnist")
    original: str | None = "{train,t10k}-{images-idx3,labels-idx1}-ubyte (or .gz), or MNIST/raw"
    downloads: tuple[Download, ...] = tuple(
        Download(f"https://ossci-datasets.s3.amazonaws.com/mnist/{file}.gz", md5=md5)
        for file, md5 in (
            ("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c"),
        )
    )


class FashionMnist(InIdx):
    """Fashion-MNIST (arXiv 1708.07747)."""

    name: Literal["fashion-mnist"] = "fashion-mnist"
    images: tuple[int, int] | None = (60_000, 10_000)
    torchvision: str = "FashionMNIST"
    info: Info = Info((1, 28, 28), FASHION, (0.2860,), (0.3530,), 5000)
    hub: Hub | None = Hub(config="fashion_mnist", names=FASHION_ON_THE_HUB)
    original: str | None = (
        "{train,t10k}-{images-idx3,labels-idx1}-ubyte (or .gz), or FashionMNIST/raw"
    )
    downloads: tuple[Download, ...] = tuple(
        Download(f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{file}.gz", md5=md5)
        for file, md5 in (
            ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310"),
        )
    )


DataSet = Embedded | Published
DATA_SETS: tuple[DataSet, ...] = (
    Digits(),
    Cifar10(),
    Svhn(),
    Cifar100(),
    Mnist(),
    FashionMnist(),
)


def names() -> list[str]:
    """Of all there are."""
    return [data_set.name for data_set in DATA_SETS]


def named(name: str) -> DataSet:
    """Raises `UserError`, which lists those there are, for an unknown name."""
    for data_set in DATA_SETS:
        if data_set.name == name:
            return data_set
    raise UserError(f"unknown data set {name!r} (there are: {', '.join(names())})")


def info(name: str) -> Info:
    """The facts of a data set. Raises `UserError` for an unknown name."""
    return named(name).info


def layout(data_set: Published, folder: Path) -> Layout:
    """How a folder holds the published files. Raises `UserError`, also where it does not."""
    foreign = frozenset().union(*(other.folders for other in DATA_SETS if other is not data_set))
    return data_set.layout(folder, foreign)
