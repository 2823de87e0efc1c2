"""Augmentation of training images, and how to do it again or undo it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fmoe.numerics.draw import Draw
from fmoe.schema import Spec

GREY = 0.5


@dataclass(frozen=True)
class Transform:
    """Where each image [B] was cropped (offsets into the image padded by `crop`) and whether it was
    mirrored; None where that is not done."""

    crop: int
    top: Tensor | None
    left: Tensor | None
    flipped: Tensor | None

    def apply(self, x_BCHW: Tensor, part: slice = slice(None), padding: str = "constant") -> Tensor:
        """What was done to the images `part`; padding: as torch's `pad` calls it."""
        if self.top is not None and self.left is not None:
            x_BCHW = window(x_BCHW, self.top[part], self.left[part], self.crop, padding)
        if self.flipped is not None:
            x_BCHW = torch.where(self.flipped[part][:, None, None, None], x_BCHW.flip(3), x_BCHW)
        return x_BCHW

    def undo(self, x_BCHW: Tensor) -> Tensor:
        """The inverse; 0 where nothing is known."""
        if self.flipped is not None:
            x_BCHW = torch.where(self.flipped[:, None, None, None], x_BCHW.flip(3), x_BCHW)
        if self.top is not None and self.left is not None:
            top, left = 2 * self.crop - self.top, 2 * self.crop - self.left
            x_BCHW = window(x_BCHW, top, left, self.crop, "constant")
        return x_BCHW


def window(x_BCHW: Tensor, top: Tensor, left: Tensor, pad: int, padding: str) -> Tensor:
    """Images of the same size, cut at (top, left) [B] out of those padded by `pad` pixels."""
    batch, _, height, width = x_BCHW.shape
    padded = F.pad(x_BCHW, (pad,) * 4, mode=padding)
    rows = (top[:, None] + torch.arange(height, device=x_BCHW.device))[:, :, None]
    columns = (left[:, None] + torch.arange(width, device=x_BCHW.device))[:, None, :]
    images = torch.arange(batch, device=x_BCHW.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows, columns].permute(0, 3, 1, 2)


def without_square(x_BCHW: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Grey where a square around the pixel (row, column) [B] covers the image."""
    height, width = x_BCHW.shape[2:]
    places = (row, height), (column, width)
    inside = [
        (torch.arange(size, device=x_BCHW.device) - place[:, None] + side // 2).div(side).floor()
        == 0
        for place, size in places
    ]
    square = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x_BCHW.masked_fill(square, GREY)


class Augment(Spec):
    """crop: pixels of reflected padding before a random crop. flip: mirror half the images.
    cutout: side in pixels of a square around a random pixel of each image that is made grey
    (arXiv 1708.04552)."""

    crop: Annotated[int, Field(ge=0, le=16)] = 0
    flip: bool = False
    cutout: Annotated[int, Field(ge=0, le=512)] = 0

    def transform(self, x_BCHW: Tensor, draw: Draw) -> Transform:
        """Draws are those of this rank's rows."""
        top = left = flipped = None
        if self.crop:
            top = draw.integers(2 * self.crop + 1, x_BCHW)
            left = draw.integers(2 * self.crop + 1, x_BCHW)
        if self.flip:
            flipped = draw.integers(2, x_BCHW).bool()
        return Transform(self.crop, top, left, flipped)

    def cut(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """What `cutout` does to moved images; perturbations that are moved along are left whole."""
        if not self.cutout:
            return x_BCHW
        row, column = (draw.integers(size, x_BCHW) for size in x_BCHW.shape[2:])
        return without_square(x_BCHW, row, column, self.cutout)

    def __call__(self, x_BCHW: Tensor, draw: Draw) -> Tensor:
        """Float images, the same shape."""
        moved = self.transform(x_BCHW, draw).apply(x_BCHW, padding="reflect")
        return self.cut(moved, draw)
