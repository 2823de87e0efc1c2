"""Adversaries that go on from epoch to epoch (ATTA, arXiv 1912.11969).

A weak attack that starts where the image's last adversary ended becomes a strong one over the
epochs. Perturbations are kept in units of eps, a byte a pixel, as they lie on the image before its
augmentation: the crop and the mirroring of each epoch are undone and done again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fmoe.data.batches import Batch
from fmoe.numerics.draw import Draw
from fmoe.numerics.state import require
from fmoe.numerics.worker import Worker

INT8_SCALE = 127


class Started(Draw):
    """A draw whose first noise [b,C,H,W] is `start` where an image has one."""

    def __init__(self, draw: Draw, start: Tensor, known: Tensor):
        super().__init__(*draw.key, total=draw.total, rows=draw.rows)
        self.start, self.known = start, known
        self.used = False

    def noise(self, like: Tensor) -> Tensor:
        fresh = super().noise(like)
        if self.used:
            return fresh
        self.used = True
        return torch.where(self.known[:, None, None, None], self.start, fresh)


class WarmStart:
    """The last perturbation of each of `images` training images [C,H,W]; the same on all ranks."""

    def __init__(self, images: int, shape: tuple[int, ...], worker: Worker):
        device, self.ranks = worker.device, worker.images
        self.kept = torch.zeros(images, *shape, dtype=torch.int8, device=device)
        self.known = torch.zeros(images, dtype=torch.bool, device=device)

    def draw(self, draw: Draw, batch: Batch, part: slice) -> Draw:
        """For the images `part` of this rank's share."""
        rows = batch.rows[batch.own][part]
        start = batch.transform.apply(self.kept[rows].float() / INT8_SCALE, part)
        return Started(draw, start, self.known[rows])

    def keep(self, batch: Batch, relative: Tensor) -> None:
        """relative: (x_adv - x) / eps of this rank's share [b,C,H,W], as augmented."""
        undone = (
            batch.transform.undo(relative).mul(INT8_SCALE).round().clamp(-INT8_SCALE, INT8_SCALE)
        )
        shares = self.ranks.shares(len(batch.rows))
        self.kept[batch.rows] = self.ranks.gathered(undone.to(torch.int8), shares)
        self.known[batch.rows] = True

    def state(self) -> dict[str, Tensor]:
        return {"kept": self.kept, "known": self.known}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        require(state, self.state(), "warm")
        self.kept.copy_(state["kept"])
        self.known.copy_(state["known"])
