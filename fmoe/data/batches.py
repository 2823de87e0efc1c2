"""Shuffled, augmented batches of one rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fmoe.data.augment import Augment, Transform
from fmoe.data.splits import Images
from fmoe.errors import UserError
from fmoe.numerics.draw import Draw, shard


def check_size(batch_size: int, images: int) -> None:
    """Raises `UserError` for a batch that so many images do not fill."""
    if batch_size > images:
        raise UserError(f"batch_size: {batch_size} is more than the {images} training images")


@dataclass(frozen=True)
class Batch:
    """A batch: this rank's images and labels; `rows` of the whole batch in the data set, `own` the
    rank's among them; where augmentation put its images."""

    x: Tensor
    y: Tensor
    rows: Tensor
    own: slice
    transform: Transform


@dataclass(frozen=True)
class Batches:
    """Shuffled batches of one rank: all ranks together see each image at most once an epoch.

    The incomplete last batch is left out. Order and augmentation depend on (seed, epoch, batch)
    alone, never on the number of ranks. sizes: pixels a side to which augmented images are scaled
    down, an epoch each, the last one for all that follow; none: as they are.
    """

    images: Images
    batch_size: int
    augment: Augment
    seed: int
    rank: int = 0
    world_size: int = 1
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_size(self.batch_size, len(self.images))
        if self.world_size > self.batch_size:
            raise UserError(f"batch_size: {self.batch_size} for {self.world_size} workers")

    def __len__(self) -> int:
        return len(self.images) // self.batch_size

    @property
    def rows(self) -> slice:
        """This rank's, of a global batch."""
        return shard(self.batch_size, self.rank, self.world_size)

    def draw(self, *key: int | str) -> Draw:
        return Draw(self.seed, *key, total=self.batch_size, rows=self.rows)

    def epoch(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images in [0,1] and labels, this rank's share of each global batch."""
        for batch in self.of_epoch(index):
            yield batch.x, batch.y

    def of_epoch(self, index: int, first: int = 0) -> Iterator[Batch]:
        """The same, with what a perturbation of the images themselves needs; from batch `first`."""
        order = self.images.order(Draw(self.seed, "shuffle", index))
        batches = torch.split(order[: len(self) * self.batch_size], self.batch_size)[first:]
        parts = self.images.batches([rows[self.rows] for rows in batches])
        for number, rows in enumerate(batches, first):
            part = next(parts)
            draw = self.draw("augment", index, number)
            x = part.pixels()
            transform = self.augment.transform(x, draw)
            assert isinstance(draw.rows, slice)
            x = self.augment.cut(transform.apply(x, padding="reflect"), draw)
            x = self.scaled(x, index)
            yield Batch(x, part.labels, rows, draw.rows, transform)

    def scaled(self, x_BCHW: Tensor, epoch: int) -> Tensor:
        """To the epoch's size: each pixel the mean of those that it stands for."""
        size = self.sizes[min(epoch, len(self.sizes) - 1)] if self.sizes else x_BCHW.shape[2]
        if size == x_BCHW.shape[2]:
            return x_BCHW
        width = max(1, size * x_BCHW.shape[3] // x_BCHW.shape[2])
        return F.interpolate(x_BCHW, (size, width), mode="area")

    def to(self, device: torch.device) -> Batches:
        return replace(self, images=self.images.to(device))
