"""The experts' networks of our own: ResNets with normalisation inside.

ResNet-18 is the one that is used on CIFAR: a 3x3 stem without max-pool (or, cheaper, one of
patches, or ImageNet's); `width` is the first stage's channels (64 is the paper's). PreActResNet-18
is the one of the literature on adversarial training, and WideResNet has its blocks. Normalisation
is inside, so that every attack works on pixels in [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.models.small_maps import by_windows, pays_in_training

Stem = Literal["cifar", "patch", "imagenet"]
STEMS: dict[Stem, tuple[int, int, int]] = {
    "cifar": (3, 1, 1),
    "patch": (4, 2, 1),
    "imagenet": (7, 2, 3),
}
"""Kernel, stride and padding of the first convolution."""
LEAST_WITH_STRIDE = 16  # channels that fill a block of oneDNN's, on any CPU


class Normalize(nn.Module):
    """(x - mean) / std per channel, x float [B,C,H,W] in [0,1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return (x_BCHW - self.mean) / self.std


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution. In training, small maps of many channels are multiplied by products of
    matrices, which take a half to a fifth of the library's time there."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.training and pays_in_training(self, x_BCHW):
            return by_windows(x_BCHW, self.weight, self.bias, self.stride[0])
        return super().forward(x_BCHW)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution. With a stride, few channels are picked out before it: oneDNN's gradient of
    the weights is wrong there on CPUs without AVX-512, and writes where it must not (oneDNN #6035).
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.in_channels >= LEAST_WITH_STRIDE or self.stride == (1, 1):
            return super().forward(x_BCHW)
        return F.conv2d(picked(x_BCHW, self.stride), self.weight, self.bias)


def picked(x_BCHW: Tensor, stride: Sequence[int]) -> Tensor:
    """The pixels that a 1x1 convolution with a stride sees."""
    down, across = stride
    return x_BCHW[:, :, ::down, ::across]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (arXiv 1512.03385, figure 5 left).

    The same modules, names and numbers as torchvision's, whose import costs every process of a run
    over a second.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = Conv3x3(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = Conv3x3(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                Pointwise(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        x = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        x = self.bn2(self.conv2(x))
        x += shortcut
        return F.relu(x, inplace=True)


def stage(in_channels: int, channels: int, stride: int) -> list[nn.Module]:
    return [BasicBlock(in_channels, channels, stride), BasicBlock(channels, channels)]


def he_normal(network: nn.Module) -> None:
    """Draw the convolutions' weights for ReLU (arXiv 1502.01852), by fan-out."""
    for module in network.modules():
        # on `meta` there is nothing to draw, and torch takes five times as long over that
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class ResNet18(nn.Module):
    """Images [B,C,H,W] in [0,1] to logits [B,K].

    stem: `cifar` looks at 3x3 around every pixel; `patch` takes overlapping patches of 4x4 pixels,
    two apart: a quarter of the work at the same width (arXiv 2201.03545, section 2.3, at CIFAR's
    size); `imagenet` is the paper's, 7x7 and a max-pool, for images of 224 pixels.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        width: int = 64,
        stem: Stem = "cifar",
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv = nn.Conv2d(len(mean), width, *STEMS[stem], bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else None
        blocks = [
            *stage(width, width, 1),
            *stage(width, 2 * width, 2),
            *stage(2 * width, 4 * width, 2),
            *stage(4 * width, 8 * width, 2),
        ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, classes)
        he_normal(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features = F.relu(self.bn(self.conv(self.normalize(x_BCHW))), inplace=True)
        if self.pool is not None:
            features = self.pool(features)
        pooled: Tensor = self.blocks(features).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions (arXiv 1603.05027, figure 1b).

    The identity shortcut carries the input itself; a 1x1 shortcut (where the shape changes) takes
    the activated input, and has no BatchNorm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv3x3(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = Conv3x3(channels, channels, 3, 1, 1, bias=False)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = Pointwise(in_channels, channels, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x_BCHW), inplace=True)
        shortcut = x_BCHW if self.downsample is None else self.downsample(activated)
        x: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        x += shortcut
        return x


class PreActivated(nn.Module):
    """A stem without BatchNorm, pre-activation blocks, BatchNorm and ReLU, pooling, a head."""

    normalize: Normalize
    conv: nn.Conv2d
    blocks: nn.Sequential
    bn: nn.BatchNorm2d
    head: nn.Linear

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features = self.blocks(self.conv(self.normalize(x_BCHW)))
        pooled = F.relu(self.bn(features), inplace=True).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


class PreActResNet18(PreActivated):
    """Images [B,C,H,W] in [0,1] to logits [B,K].

    The variant of adversarial training on CIFAR (RobustBench's PreActResNet18 with `bn_before_fc`
    and `out_shortcut`): a 3x3 stem without BatchNorm, and the paper's BatchNorm and ReLU before
    pooling, which pytorch-cifar leaves out. Convolutions start as the paper's do, by `he_normal`;
    both libraries start them as torch does.
    """

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], classes: int, width: int = 64
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv = nn.Conv2d(len(mean), width, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            PreActBlock(width, width),
            PreActBlock(width, width),
            PreActBlock(width, 2 * width, 2),
            PreActBlock(2 * width, 2 * width),
            PreActBlock(2 * width, 4 * width, 2),
            PreActBlock(4 * width, 4 * width),
            PreActBlock(4 * width, 8 * width, 2),
            PreActBlock(8 * width, 8 * width),
        )
        self.bn = nn.BatchNorm2d(8 * width)
        self.head = nn.Linear(8 * width, classes)
        he_normal(self)


class WideResNet(PreActivated):
    """Images [B,C,H,W] in [0,1] to logits [B,K] (arXiv 1605.07146).

    The variant of adversarial training (TRADES' and RobustBench's): a 3x3 stem of 16 channels,
    three stages of pre-activation blocks, BatchNorm and ReLU before pooling, no dropout.
    """

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], classes: int, depth: int, width: int
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv = nn.Conv2d(len(mean), 16, 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        before = 16
        for channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            for _ in range((depth - 4) // 6):
                blocks.append(PreActBlock(before, channels, stride))
                before, stride = channels, 1
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(before)
        self.head = nn.Linear(before, classes)
        he_normal(self)
