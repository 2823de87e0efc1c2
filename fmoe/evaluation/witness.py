"""What is odd about an image's answers, noted as a stage of an evaluation meets it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import torch
from torch import Tensor

ODD = "odd."
"""`odd.STAGE`, uint8 [B]: a sum of `Odd`."""


class Odd(IntFlag):
    NON_FINITE = 1
    """An output that is NaN or infinite."""
    GRADIENT = 2
    """An input gradient that is NaN or infinite."""
    FLAT = 4
    """An input gradient of exactly 0."""
    RANDOM = 8
    """Two passes one after the other differ."""
    STATEFUL = 16
    """What was asked before changes the answer."""
    BATCH = 32
    """The other images of the batch change the answer."""
    MODE = 64
    """Asking for a gradient changes the answer."""
    MISLED = 128
    """A small step along the gradient does not raise the loss."""


@dataclass(frozen=True)
class Left:
    """The images rows [R] of a chunk, where they were left x [R,C,H,W], and the answers [R,K]."""

    rows: Tensor
    x: Tensor
    outputs: Tensor


class Witness:
    """Of one stage on a chunk of B images. odd: uint8 [B]; last: what was asked last of the images
    that were attacked last."""

    def __init__(self, images: int, device: torch.device):
        self.odd = torch.zeros(images, dtype=torch.uint8, device=device)
        self.last: list[Left] = []

    def see(self, kind: Odd, rows: Tensor) -> None:
        """rows: bool [B], or places [R] that differ."""
        self.odd[rows] |= int(kind)

    def saw(self, kind: Odd) -> Tensor:
        """bool [B]"""
        return (self.odd & int(kind)) != 0

    def forget(self, kind: Odd, rows: Tensor | slice) -> None:
        self.odd[rows] &= ~int(kind) & 255

    def left(self, *last: Left) -> None:
        self.last = [left for left in last if len(left.rows)]


class Aside(Witness):
    """Notes for another witness what is odd, and not where images were left."""

    def __init__(self, of: Witness):
        super().__init__(len(of.odd), of.odd.device)
        self.odd = of.odd

    def left(self, *last: Left) -> None:
        pass
