"""Images and labels as uint8 tensors, and the validation split that is cut out of train."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fmoe.data.facts import Facts, Identity
from fmoe.data.kinds import Info
from fmoe.errors import UserError


@dataclass(frozen=True)
class Split:
    """images uint8 [N,C,H,W], labels int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Split:
        return Split(self.images[rows], self.labels[rows])

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def pixels(self) -> Tensor:
        """Float [N,C,H,W] in [0,1], channels last in memory."""
        return self.images.float().div(255).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class TrainingData:
    """What training and selection may see."""

    name: str
    train: Split
    val: Split
    identity: Identity

    @property
    def facts(self) -> Facts:
        return self.identity.facts

    @property
    def train_digest(self) -> str:
        """sha256 over the published training images and labels."""
        return self.identity.train_digest


@dataclass(frozen=True)
class Data(TrainingData):
    test: Split
    digest: str
    """sha256 over images and labels of train and test."""

    @functools.cached_property
    def test_digest(self) -> str:
        """sha256 over images and labels of test."""
        return digest(self.test)


def digest(*splits: Split) -> str:
    sha = hashlib.sha256()
    for split in splits:
        for array in (split.images, split.labels):
            sha.update(repr(tuple(array.shape)).encode())
            sha.update(array.contiguous().numpy().tobytes())
    return sha.hexdigest()


def whole_digest(train: Split, val: Split | None, test: Split) -> str:
    """Of a data set. val: only where the set has one of its own."""
    return digest(train, test) if val is None else digest(train, val, test)


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
    train: Split,
    val: Split | None = None,
    *,
    val_images: int | None = None,
    train_images: int | None = None,
) -> TrainingData:
    """The training images, and those of validation: cut out of train, or of the set's own `val`.

    They are the same images whatever the run's seed. Raises `UserError` for numbers that are not
    possible.
    """
    if val is None:
        count = data_set.info.val_images if val_images is None else val_images
        if not 0 < count < len(train):
            raise UserError(
                f"data.val_images: {count} is not possible with {len(train)} training images"
            )
        order = shuffled(len(train))
        held_out, left, digests = train[order[:count].sort().values], order[count:], digest(train)
    else:
        count = len(val) if val_images is None else val_images
        if not 0 < count <= len(val):
            raise UserError(
                f"data.val_images: {count}, and {data_set.name} has {len(val)} validation images "
                "of its own; data.val_images=null takes them all"
            )
        held_out = val[shuffled(len(val))[:count].sort().values]
        left, digests = shuffled(len(train)), digest(train, val)
    if train_images is not None and train_images > len(left):
        raise UserError(f"data.train_images: {train_images}, and {len(left)} are left to train on")
    rest = left[:train_images].sort().values
    identity = Identity(data_set.facts, digests, count)
    return TrainingData(data_set.name, train[rest], held_out, identity)


def shuffled(count: int) -> Tensor:
    """0..count-1 in an order that never changes."""
    return torch.from_numpy(np.random.RandomState(0).permutation(count))
