"""The experts' backbones, each a configuration that builds its network.

ResNet-18 is the one that is used on CIFAR: a 3x3 stem without max-pool (or, cheaper, one of
patches); `width` is the first stage's channels (64 is the paper's). PreActResNet-18 is the one of
the literature on adversarial training.
Normalisation is inside, so that every attack works on pixels in [0,1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from fmoe.schema import Spec

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
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
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

    patch: the stem takes overlapping patches of 4x4 pixels, two apart, instead of 3x3 around every
    pixel: a quarter of the work at the same width (arXiv 2201.03545, section 2.3, at CIFAR's size).
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        width: int = 64,
        patch: bool = False,
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        kernel, stride = (4, 2) if patch else (3, 1)
        self.conv = nn.Conv2d(len(mean), width, kernel, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
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
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = Pointwise(in_channels, channels, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x_BCHW), inplace=True)
        shortcut = x_BCHW if self.downsample is None else self.downsample(activated)
        x: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        x += shortcut
        return x


class PreActResNet18(nn.Module):
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

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features = self.blocks(self.conv(self.normalize(x_BCHW)))
        pooled = F.relu(self.bn(features), inplace=True).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits


class Backbone(Spec):
    """What all backbones share."""

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        """Images [B,C,H,W] in [0,1] (shape: [C,H,W]) to logits [B,K].

        The network normalises by mean and std (see `Normalize`), and its last layer is its
        attribute `head`, which is what `joint.update: heads` trains.
        """
        raise NotImplementedError


class ResNet18Backbone(Backbone):
    """ResNet-18 (arXiv 1512.03385)."""

    kind: Literal["resnet18"] = "resnet18"
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    """Channels of the first stage; 64 is ResNet-18."""
    stem: Literal["cifar", "patch"] = "cifar"
    """A 3x3 convolution around every pixel, or patches of 4x4 pixels, two apart."""

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        patch = self.stem == "patch"
        return ResNet18(mean=mean, std=std, classes=classes, width=self.width, patch=patch)


class PreActResNet18Backbone(Backbone):
    """Pre-activation ResNet-18 (arXiv 1603.05027), as in adversarial training on CIFAR."""

    kind: Literal["preact_resnet18"] = "preact_resnet18"
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    """Channels of the first stage; 64 is PreActResNet-18."""

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        return PreActResNet18(mean=mean, std=std, classes=classes, width=self.width)


def with_kind(value: Any) -> Any:
    """ResNet-18 needs no name: it was there before the others."""
    return {"kind": "resnet18", **value} if isinstance(value, dict) else value


BackboneConfig = Annotated[
    ResNet18Backbone | PreActResNet18Backbone,
    Field(discriminator="kind"),
    BeforeValidator(with_kind),
]
"""A new backbone: a class above and its name in this union, as `… | Another`."""
