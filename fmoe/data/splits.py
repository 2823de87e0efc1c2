"""Labelled images, in memory or elsewhere, and the validation split that is cut out of train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypeVar

from fmoe.data.facts import Facts, Identity
from fmoe.data.kinds import Info
from fmoe.errors import UserError
from fmoe.numerics.draw import Draw


class Images(Protocol):
    """Labelled images: a `Split` in memory, or in files (`fmoe.data.streamed`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Images:
        """Those of a slice or a tensor of rows."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """[C,H,W] of one."""
        ...

    def to(self, device: torch.device) -> Images:
        """The same, on a device once they are in memory."""
        ...

    def held(self) -> Split:
        """All of them in memory."""
        ...

    def pieces(self) -> Iterator[tuple[Tensor, Split]]:
        """All of them, some at a time, and which rows they are."""
        ...

    def order(self, shuffle: Draw) -> Tensor:
        """Rows in the order of an epoch [N]."""
        ...

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Split]:
        """Those of each tensor of rows."""
        ...


@dataclass(frozen=True)
class Split:
    """images uint8 [N,C,H,W], labels int64 [N]."""

    images: Tensor
    labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def held(self) -> Split:
        return self

    def pieces(self) -> Iterator[tuple[Tensor, Split]]:
        yield torch.arange(len(self)), self

    def order(self, shuffle: Draw) -> Tensor:
        order = torch.randperm(len(self), generator=shuffle.generator(torch.device("cpu")))
        return order.to(self.images.device)

    def batches(self, rows: Sequence[Tensor]) -> Iterator[Split]:
        return (self[some] for some in rows)

    def pixels(self) -> Tensor:
        """Float [N,C,H,W] in [0,1], channels last in memory."""
        return self.images.float().div(255).contiguous(memory_format=torch.channels_last)


Kept = TypeVar("Kept", bound=Images, default=Split, covariant=True)
"""How images are kept, by default in memory."""


@dataclass(frozen=True)
class TrainingData(Generic[Kept]):
    """What training and selection may see."""

    name: str
    train: Kept
    val: Kept
    identity: Identity

    @property
    def facts(self) -> Facts:
        return self.identity.facts

    @property
    def train_digest(self) -> str:
        """sha256 over the published training images and labels."""
        return self.identity.train_digest


@dataclass(frozen=True)
class Data(TrainingData[Kept]):
    test: Kept
    test_digest: str
    """sha256 over images and labels of test."""
    digest: str
    """sha256 over images and labels of train and test."""


def digest(*splits: Split) -> str:
    sha = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels):
            feed(sha, tuple(array.shape), flat(array.numpy()))
    return sha.hexdigest()


def flat(array: np.ndarray[Any, Any]) -> memoryview:
    """Its bytes, in order."""
    return np.ascontiguousarray(array).reshape(-1).data


def feed(sha: Any, shape: tuple[int, ...], values: memoryview | bytes = b"") -> None:
    """As every digest of images or labels has them: the shape, then the values."""
    sha.update(repr(shape).encode())
    sha.update(values)


class Cuttable(Protocol):
    """What `cut` must know of a data set."""

    @property
    def name(self) -> str: ...
    @property
    def facts(self) -> Facts: ...
    @property
    def info(self) -> Info: ...


def cut(
    data_set: Cuttable,
    train: Images,
    val: Images | None = None,
    *,
    train_digest: str,
    streamed: bool = False,
    val_images: int | None = None,
    train_images: int | None = None,
) -> TrainingData[Images]:
    """The training images, and those of validation: cut out of train, or of the set's own `val`.

    They are the same images whatever the run's seed. train_digest: of both as they are published.
    Raises `UserError` for numbers that are not possible.
    """
    if val is None:
        count = data_set.info.val_images if val_images is None else val_images
        if not 0 < count < len(train):
            raise UserError(
                f"data.val_images: {count} is not possible with {len(train)} training images"
            )
        order = shuffled(len(train))
        held_out, left = train[order[:count].sort().values], order[count:]
    else:
        count = len(val) if val_images is None else val_images
        if not 0 < count <= len(val):
            raise UserError(
                f"data.val_images: {count}, and {data_set.name} has {len(val)} validation images "
                "of its own; data.val_images=null takes them all"
            )
        held_out = val[shuffled(len(val))[:count].sort().values]
        left = shuffled(len(train))
    if train_images is not None and train_images > len(left):
        raise UserError(f"data.train_images: {train_images}, and {len(left)} are left to train on")
    rest = left[:train_images].sort().values
    identity = Identity(data_set.facts, train_digest, count, streamed)
    return TrainingData(data_set.name, train[rest], held_out, identity)


def shuffled(count: int) -> Tensor:
    """0..count-1 in an order that never changes."""
    return torch.from_numpy(np.random.RandomState(0).permutation(count))
