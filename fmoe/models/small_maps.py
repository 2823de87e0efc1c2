"""Convolutions whose maps have a few pixels, as products of matrices.

The libraries' kernels are made for large maps: on 2x2 pixels a 3x3 kernel spends five of its nine
products on padding, and oneDNN's takes three to four times as long as the one matrix product that
the layer is. The same sums up to rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_SIDE = 2  # pixels: above, a matrix of the whole map has more products than the kernel


def is_dense(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether `matrices` has what the convolution is on x: 3x3, its output as large as x, and that
    is small."""
    known = (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
    return known and max(x_BCHW.shape[2:]) <= LARGEST_SIDE


def is_of_columns(conv: nn.Conv2d, x_BCHW: Tensor) -> bool:
    """Whether `by_columns` is for the convolution on x: 3x3, of one group, to a small output."""
    known = (conv.kernel_size, conv.padding, conv.groups) == ((3, 3), (1, 1), 1)
    return known and max(x_BCHW.shape[2:]) <= LARGEST_SIDE * conv.stride[0]


def matrices(weight: Tensor, groups: int, height: int, width: int) -> Tensor:
    """[G, height·width·O, height·width·I] of a 3x3 kernel [G·O,I,3,3]: to all pixels from all."""
    rows, columns = (_taps(size, weight.device) for size in (height, width))
    taps = weight.permute(0, 2, 3, 1).index_select(1, rows).index_select(2, columns)
    outputs, inputs = len(weight) // groups, weight.shape[1]
    apart = taps.reshape(groups, outputs, height, height, width, width, inputs)
    wanted = apart.permute(0, 2, 4, 1, 3, 5, 6)
    return wanted.reshape(groups, height * width * outputs, height * width * inputs)


def _taps(size: int, device: torch.device) -> Tensor:
    """Of a kernel's row, what leads to pixel q from pixel p: in the order of (q, p)."""
    place = torch.arange(size, device=device)
    return (place[None, :] - place[:, None] + 1).flatten()


def by_matrices(x_BCHW: Tensor, matrix_GOI: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution whose `matrices` these are."""
    groups, (count, channels, height, width) = len(matrix_GOI), x_BCHW.shape
    pixels = x_BCHW.permute(0, 2, 3, 1).reshape(count, height, width, groups, channels // groups)
    flat = pixels.permute(3, 0, 1, 2, 4).flatten(2)
    out = torch.bmm(flat, matrix_GOI.transpose(1, 2)).view(groups, count, height, width, -1)
    channels_last: Tensor = out.permute(1, 2, 3, 0, 4).flatten(3)
    if bias is not None:
        channels_last = channels_last + bias
    return channels_last.permute(0, 3, 1, 2)


def by_columns(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """A convolution of one group, with a padding of 1: each output's window is a product's row."""
    kernel = weight.shape[2]
    padded = F.pad(x_BCHW.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # [B,h,w,C,k,k]
    rows = windows.permute(0, 1, 2, 4, 5, 3).flatten(3)
    flat = weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(rows, flat, bias).permute(0, 3, 1, 2)


def input_of_columns(of_output_BOhw: Tensor, weight: Tensor, x_BCHW: Tensor, stride: int) -> Tensor:
    """The gradient of x from that of what `by_columns` gave, with a padding of 1."""
    (count, channels, height, width), kernel = x_BCHW.shape, weight.shape[2]
    flat = weight.permute(0, 2, 3, 1).flatten(1)
    products = of_output_BOhw.permute(0, 2, 3, 1) @ flat
    windows = products.view(*products.shape[:3], kernel, kernel, channels)
    padded = windows.new_zeros(count, height + 2, width + 2, channels)
    for row in range(windows.shape[1]):
        for column in range(windows.shape[2]):
            top, left = stride * row, stride * column
            padded[:, top : top + kernel, left : left + kernel] += windows[:, row, column]
    return padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2)
