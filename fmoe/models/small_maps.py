"""Convolutions whose maps have a few pixels, as products of matrices.

The libraries' kernels are made for large maps: on 2x2 pixels a 3x3 kernel spends five of its nine
products on padding, and oneDNN's takes three to four times as long as the one matrix product that
the layer is. The same sums up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fmoe.numerics.products import add_product, products

LARGEST_SIDE = 2  # pixels: above, a matrix of the whole map has more products than the kernel
MANY_CHANNELS = 8192
"""Channels read times channels given: below, a training pass has too many products that are too
small. With 128 times 128 it takes 0.2 to 0.7 of oneDNN's time, with 16 times 16 twice that."""


def is_dense(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether `matrices` has what the convolution is on x: 3x3, its output as large as x, and that
    is small."""
    known = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    return known and not exported() and max(x_BCHW.shape[2:]) <= LARGEST_SIDE


def is_of_windows(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether `by_windows` is for the convolution on x: 3x3, of one group, to a small output, and
    not on a GPU, where a few large launches are better than many small ones (not measured)."""
    known = (conv.kernel_size, conv.padding, conv.groups) == ((3, 3), (1, 1), 1)
    small = max(x_BCHW.shape[2:]) <= LARGEST_SIDE * conv.stride[0]
    return known and small and not exported() and x_BCHW.device.type == "cpu"


def pays_in_training(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether `by_windows` is for the convolution on x where the gradient of its weights is asked
    for, too; what compiles the network has its own ways."""
    many = conv.in_channels * conv.out_channels >= MANY_CHANNELS
    return many and not torch.compiler.is_compiling() and is_of_windows(conv, x_BCHW)


def exported() -> bool:
    """Whether a program is being made of the network: it gets the convolutions themselves, which
    whatever runs it has its own ways with, and is for any number of images."""
    return torch.compiler.is_exporting()


def matrices(weight: Tensor, groups: int, height: int, width: int) -> Tensor:
    """[G, height·width·O, height·width·I] of a 3x3 kernel [G·O,I,3,3]: to all pixels from all."""
    if torch.is_grad_enabled() and weight.requires_grad:
        made: Tensor = Matrices.apply(weight, groups, height, width)
        return made
    return _matrices(weight, groups, height, width)


class Matrices(torch.autograd.Function):
    """Its gradient adds up what stands at many places of the matrix."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, groups: int, height: int, width: int) -> Tensor:
        ctx.of = weight.shape, groups, height, width
        return _matrices(weight, groups, height, width)

    @staticmethod
    def backward(ctx: Any, of_matrices: Tensor) -> tuple[Tensor, None, None, None]:
        (outputs, inputs, *_), groups, height, width = ctx.of
        pixels = height * width
        placed = of_matrices.view(groups, pixels, outputs // groups, pixels, inputs)
        of_taps = placed.new_zeros(groups, outputs // groups, 3, 3, inputs)
        for to, source, row, column in _taps(height, width):
            of_taps[:, :, row, column] += placed[:, to, :, source]
        return of_taps.flatten(0, 1).permute(0, 3, 1, 2), None, None, None


def _matrices(weight: Tensor, groups: int, height: int, width: int) -> Tensor:
    outputs, inputs, pixels = len(weight) // groups, weight.shape[1], height * width
    taps = _channels_last(weight).view(groups, outputs, 3, 3, inputs)
    placed = taps.new_empty(groups, pixels, outputs, pixels, inputs)
    for to, source, row, column in _taps(height, width):
        placed[:, to, :, source] = taps[:, :, row, column]
    return placed.view(groups, pixels * outputs, pixels * inputs)


def _taps(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """To which pixel, from which, and the kernel's row and column between them: each is within
    its reach on maps as small as `LARGEST_SIDE`."""
    places = list(product(range(height), range(width)))
    for (to, (down, right)), (source, (row, column)) in product(enumerate(places), repeat=2):
        yield to, source, row - down + 1, column - right + 1


def by_matrices(x_BCHW: Tensor, matrix_GOI: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution whose `matrices` these are."""
    groups, (count, channels, height, width) = len(matrix_GOI), x_BCHW.shape
    pixels = x_BCHW.permute(0, 2, 3, 1).reshape(count, height, width, groups, channels // groups)
    flat = pixels.permute(3, 0, 1, 2, 4).flatten(2)
    outputs = matrix_GOI.shape[1] // (height * width)
    out = products(flat, matrix_GOI).view(groups, count, height, width, outputs)
    channels_last: Tensor = out.permute(1, 2, 3, 0, 4).flatten(3)
    if bias is not None:
        channels_last = channels_last + bias
    return channels_last.permute(0, 3, 1, 2)


def by_windows(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A 3x3 convolution of one group with a padding of 1, which nothing is computed on: a product
    of matrices for each row of each output's window."""
    x_BCHW, weight, bias = _cast(x_BCHW, weight, bias)
    if torch.is_grad_enabled() and (x_BCHW.requires_grad or weight.requires_grad):
        out: Tensor = ByWindows.apply(x_BCHW, weight, bias, stride)
        return out
    return _output(x_BCHW, weight, bias, stride)


class ByWindows(torch.autograd.Function):
    """Its gradients are such products too: autograd's own would add up windows one by one."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int
    ) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        ctx.stride = stride
        return _output(x_BCHW, weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        x_BCHW, weight = ctx.saved_tensors
        given = of_output, weight, x_BCHW, ctx.stride
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            input_of_windows(*given) if of_x else None,
            _weight_of_windows(*given) if of_weight else None,
            of_output.sum((0, 2, 3)) if of_bias else None,
            None,
        )


def input_of_windows(of_output_BOhw: Tensor, weight: Tensor, x_BCHW: Tensor, stride: int) -> Tensor:
    """The gradient of x from that of what `by_windows` gave."""
    of_output, taps = of_output_BOhw.permute(0, 2, 3, 1), _channels_last(weight)
    of_x = of_output.new_zeros(_channels_last(x_BCHW).shape)
    for at, seen, over in _windows(x_BCHW, stride):
        add_product(of_x[seen].view(len(of_x), -1), of_output[at], taps[over].flatten(1).t())
    return of_x.permute(0, 3, 1, 2)


def _output(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    x, taps = _channels_last(x_BCHW), _channels_last(weight)
    height, width = (-(-size // stride) for size in x_BCHW.shape[2:])
    shape, kept = (len(x), len(weight), height, width), torch.channels_last
    # no view of another tensor: ReLU is in place
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=kept)
    out[:] = 0.0 if bias is None else bias[:, None, None]
    pixels = out.permute(0, 2, 3, 1)
    for at, seen, over in _windows(x_BCHW, stride):
        add_product(pixels[at], x[seen].flatten(1), taps[over].flatten(1))
    return out


def _weight_of_windows(
    of_output_BOhw: Tensor, weight: Tensor, x_BCHW: Tensor, stride: int
) -> Tensor:
    of_output, x = of_output_BOhw.permute(0, 2, 3, 1), _channels_last(x_BCHW)
    of_taps = of_output.new_zeros(_channels_last(weight).shape)
    for at, seen, over in _windows(x_BCHW, stride):
        seen_by_taps = x[seen].flatten(1).t()
        add_product(of_taps[over].view(len(of_taps), -1), of_output[at].t(), seen_by_taps)
    return of_taps.permute(0, 3, 1, 2)


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As autocast does for a convolution; products in place are not its business."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _channels_last(tensor: Tensor) -> Tensor:
    """[B,H,W,C] of [B,C,H,W], without gaps."""
    return tensor.permute(0, 2, 3, 1).contiguous()


Index = tuple[slice | int, ...]


def _windows(x_BCHW: Tensor, stride: int) -> Iterator[tuple[Index, Index, Index]]:
    """Row by row of each window: the output's pixel in [B,h,w,O], the pixels in [B,H,W,C] that it
    sees, and the taps in [O,3,3,C] through which; no padding."""
    every, (height, width) = slice(None), x_BCHW.shape[2:]
    for down, right in product(range(-(-height // stride)), range(-(-width // stride))):
        top, left = stride * down - 1, stride * right - 1
        columns = slice(max(left, 0), min(left + 3, width))
        taps = slice(columns.start - left, columns.stop - left)
        for row in range(max(top, 0), min(top + 3, height)):
            yield (every, down, right), (every, row, columns), (every, row - top, taps)
