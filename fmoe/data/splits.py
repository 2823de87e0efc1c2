"""Images and labels as uint8 tensors, and the validation split that is cut out of train."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fmoe.data.facts import Facts, Identity
from fmoe.data.sets import Name, named
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

    name: Name
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


def cut(
    name: Name, train: Split, val_images: int | None = None, train_images: int | None = None
) -> TrainingData:
    """Cuts the fixed validation split out of train; the same images whatever the run's seed."""
    known = named(name)
    count = known.info.val_images if val_images is None else val_images
    if not 0 < count < len(train):
        raise UserError(
            f"data.val_images: {count} is not possible with {len(train)} training images"
        )
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(train)))
    left = len(train) - count
    if train_images is not None and train_images > left:
        raise UserError(f"data.train_images: {train_images}, and {left} are left to train on")
    val, rest = order[:count].sort().values, order[count:][:train_images].sort().values
    identity = Identity(known.facts, digest(train), count)
    return TrainingData(name, train[rest], train[val], identity)


def split(
    name: Name,
    train: Split,
    test: Split,
    val_images: int | None = None,
    train_images: int | None = None,
) -> Data:
    part = cut(name, train, val_images, train_images)
    return Data(name, part.train, part.val, part.identity, test, digest(train, test))
