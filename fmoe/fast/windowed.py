"""Forward passes for images of which a small window has changed: only what it touches is computed.

An output of a convolution depends on a few pixels around its place, so the rest of the early
layers' activations is as it was. Square Attack asks thousands of times about squares of a few
pixels. The logits are those of a whole pass, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.fast.layers import Layer, known, layers
from fmoe.models.experts import ResNet18
from fmoe.models.gates import ConvNet
from fmoe.models.mixture import Mixture

LARGEST_SHARE = 0.8
"""A layer is computed in part where the change covers at most this share of it; above, cutting out
costs what the smaller convolution saves."""


class Box(NamedTuple):
    """Rows top to bottom, columns left to right, the ends left out."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW[:, :, self.top : self.bottom, self.left : self.right]

    def overlap(self, other: Box) -> Box:
        """What both have; nothing where they only touch."""
        return Box(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )

    def seen_from(self, frame: Box) -> Box:
        """The same place in what frame cuts out."""
        return Box(
            self.top - frame.top,
            self.bottom - frame.top,
            self.left - frame.left,
            self.right - frame.left,
        )

    def share(self, x_BCHW: Tensor) -> float:
        return self.of(x_BCHW).numel() / x_BCHW.numel()


@dataclass
class Value:
    """A tensor [B,C,H,W] for the images as they are, and what it would be after the change.

    fresh: that within box, or all of it where box is None.
    """

    settled: Tensor
    box: Box | None = None
    fresh: Tensor | None = None

    def changed(self, crop: Box | None) -> Tensor:
        """With the change: what crop cuts out, or all."""
        if self.fresh is None or self.box is None:
            activations = self.settled if self.fresh is None else self.fresh
            return activations if crop is None else to_channels_last(crop.of(activations))
        if crop is None:
            crop = Box(0, self.settled.shape[2], 0, self.settled.shape[3])
        copy = crop.of(self.settled).clone(memory_format=torch.channels_last)
        both = crop.overlap(self.box)
        both.seen_from(crop).of(copy).copy_(both.seen_from(self.box).of(self.fresh))
        return copy

    def settle(self, accepted: Tensor) -> None:
        """Takes the change over for these images, int64 [b]; for the others it is forgotten."""
        if self.fresh is not None and len(accepted):
            place = self.settled if self.box is None else self.box.of(self.settled)
            place[accepted] = self.fresh[accepted]
        self.box, self.fresh = None, None

    def select(self, rows: Tensor) -> None:
        self.settled = to_channels_last(self.settled[rows])


def geometry(conv: nn.Conv2d) -> Iterator[tuple[int, int, int]]:
    """Kernel, stride and padding of rows, then of columns."""
    for axis in range(2):
        yield conv.kernel_size[axis], conv.stride[axis], int(conv.padding[axis])


def touched(conv: nn.Conv2d, box: Box | None, out: Tensor) -> Box | None:
    """Where out, conv's output, changes when its input does in box; None: (nearly) everywhere."""
    if box is None:
        return None
    edges: list[int] = []
    for place, (kernel, stride, pad) in enumerate(geometry(conv)):
        low, high = box[2 * place : 2 * place + 2]
        first, last = -(-(low + pad - kernel + 1) // stride), (high - 1 + pad) // stride
        edges += [max(0, first), min(out.shape[2 + place] - 1, last) + 1]
    box = Box(*edges)
    return box if box.share(out) <= LARGEST_SHARE else None


def convolved(conv: nn.Conv2d, value: Value, box: Box | None) -> Tensor:
    """conv's output with the value's change: in box alone, or all."""
    if box is None:
        whole: Tensor = conv(value.changed(None))
        return whole
    crop: list[int] = []
    zeros: list[int] = []
    for place, (kernel, stride, pad) in enumerate(geometry(conv)):
        low, high = box[2 * place : 2 * place + 2]
        first, end = low * stride - pad, (high - 1) * stride - pad + kernel
        size = value.settled.shape[2 + place]
        crop += [max(0, first), min(size, end)]
        zeros = [max(0, -first), max(0, end - size), *zeros]  # F.pad has the last axis first
    part = value.changed(Box(*crop))
    if any(zeros):
        part = F.pad(part, zeros)
    return F.conv2d(part, conv.weight, conv.bias, conv.stride)


def output(layer: Layer, values: Sequence[Value], box: Box | None = None) -> Tensor:
    """The layer's, with the values' changes: in box alone, or all."""
    out = convolved(layer.conv, values[layer.source], box)
    if layer.added is not None:
        x, conv = values[layer.added], layer.shortcut
        out += x.changed(box) if conv is None else convolved(conv, x, box)
    return F.relu_(out)


class Network:
    """One network, and its activations for the images as they are."""

    def __init__(self, module: ResNet18 | ConvNet):
        self.module, self.layers = module, layers(module)
        self.values: list[Value] = []

    def whole(self, x: Tensor) -> Tensor:
        """Logits of x."""
        self.values = [Value(self.module.normalize(x))]
        for layer in self.layers:
            self.values.append(Value(to_channels_last(output(layer, self.values))))
        return self.logits()

    def changed(self, images: Value) -> Tensor:
        """Logits with the images' change."""
        assert images.fresh is not None
        first, *later = self.values
        first.box, first.fresh = images.box, self.module.normalize(images.fresh)
        for layer, value in zip(self.layers, later, strict=True):
            value.box = touched(layer.conv, self.values[layer.source].box, value.settled)
            value.fresh = output(layer, self.values, value.box)
        return self.logits()

    def logits(self) -> Tensor:
        said: Tensor = self.module.head(self.values[-1].changed(None).mean((2, 3)))
        return said

    def settle(self, accepted: Tensor) -> None:
        for value in self.values:
            value.settle(accepted)

    def select(self, rows: Tensor) -> None:
        for value in self.values:
            value.select(rows)


class Plain:
    """A module that is not known from inside: whole passes."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.values: list[Value] = []

    def whole(self, x: Tensor) -> Tensor:
        said: Tensor = self.module(x)
        return said

    def changed(self, images: Value) -> Tensor:
        return self.whole(images.changed(None))

    def settle(self, accepted: Tensor) -> None:
        pass

    def select(self, rows: Tensor) -> None:
        pass


def to_channels_last(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.contiguous(memory_format=torch.channels_last)


class Windowed:
    """A folded classifier (`fmoe.fast.folding`) and its images x float [B,C,H,W].

    `whole` begins; then `changed` writes a window into every image and gives the logits [B,K], and
    `settle` keeps that for the images where it is wanted.
    """

    def __init__(self, model: nn.Module):
        self.mixture = model if type(model) is Mixture else None
        parts = [model] if self.mixture is None else [self.mixture.gate, *self.mixture.experts]
        self.parts = [Network(part) if known(part) else Plain(part) for part in parts]

    def whole(self, x: Tensor) -> Tensor:
        """The logits of x."""
        self.images = Value(x.clone())
        return self._combined([part.whole(x) for part in self.parts])

    def changed(self, window: Box, new: Tensor) -> Tensor:
        """The logits with new [B,C,h,w] in the window."""
        self.images.box, self.images.fresh = window, new
        return self._combined([part.changed(self.images) for part in self.parts])

    def settle(self, accepted: Tensor) -> None:
        """Takes the change over for these images, int64 [b], and for no other."""
        self.images.settle(accepted)
        for part in self.parts:
            part.settle(accepted)

    def select(self, rows: Tensor) -> None:
        """Goes on with these images, int64 [b]."""
        self.images.select(rows)
        for part in self.parts:
            part.select(rows)

    @property
    def bytes(self) -> int:
        """What is kept."""
        kept = [value.settled for part in self.parts for value in part.values]
        return sum(value.numel() * value.element_size() for value in kept)

    def _combined(self, said: list[Tensor]) -> Tensor:
        if self.mixture is None:
            return said[0]
        return self.mixture.combine(self.mixture.log_weights(said[0]), torch.stack(said[1:], 1))
