"""Gates: networks from an image to one logit an expert [B,E].

The mixture divides the logits by the temperature and takes the softmax: every expert runs, each
contributes a fraction (Divided We Fall: soft, fractional gating). `top1` alone is hard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fmoe.models.experts import Normalize, ResNet18
from fmoe.schema import Spec

Width = Annotated[int, Field(ge=1, le=1024)]
Temperature = Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)]


class ConvNet(nn.Module):
    """Two strided 3x3 convolutions, pooling, a linear layer."""

    def __init__(self, *, mean: Sequence[float], std: Sequence[float], experts: int, width: int):
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(len(mean), width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, experts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(self.normalize(x_BCHW))))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class LinearNet(nn.Module):
    """One linear layer on the normalised pixels."""

    def __init__(
        self, *, mean: Sequence[float], std: Sequence[float], experts: int, shape: Sequence[int]
    ):
        super().__init__()
        self.normalize = Normalize(mean, std)
        channels, height, width = shape
        self.head = nn.Linear(channels * height * width, experts)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.head(self.normalize(x_BCHW).flatten(1))
        return logits


class UniformNet(nn.Module):
    """Equal logits: a plain ensemble."""

    def __init__(self, *, experts: int):
        super().__init__()
        self.experts = experts

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.new_zeros(x_BCHW.shape[0], self.experts)


class Gate(Spec):
    """What all gates share. `hard`: the mixture routes to the best expert only; `learns`: it has
    parameters to train."""

    temperature: Temperature = 1.0

    @property
    def hard(self) -> bool:
        return False

    @property
    def of_features(self) -> bool:
        """It reads the mean features [B,C] of the experts' trunk, and is built for shape (C,)."""
        return False

    @property
    def any_size(self) -> bool:
        """It takes images of other sizes than that it was built for."""
        return True

    @property
    def learns(self) -> bool:
        return True

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        raise NotImplementedError


class Conv(Gate):
    """A small convolutional network (the default)."""

    kind: Literal["conv"] = "conv"
    width: Width = 16

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        return ConvNet(mean=mean, std=std, experts=experts, width=self.width)


class ResNet(Gate):
    """A ResNet-18 of its own."""

    kind: Literal["resnet"] = "resnet"
    width: Width = 16

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        return ResNet18(mean=mean, std=std, classes=experts, width=self.width)


class Linear(Gate):
    """A linear map of the pixels."""

    kind: Literal["linear"] = "linear"

    @property
    def any_size(self) -> bool:
        return False

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        return LinearNet(mean=mean, std=std, experts=experts, shape=shape)


class Features(Gate):
    """A linear map of the mean features of the experts' trunk (`experts.trunk`)."""

    kind: Literal["features"] = "features"

    @property
    def of_features(self) -> bool:
        return True

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        (channels,) = shape
        return nn.Linear(channels, experts)


class Uniform(Gate):
    """The same weight for every expert, whatever the image."""

    kind: Literal["uniform"] = "uniform"

    @property
    def learns(self) -> bool:
        return False

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        return UniformNet(experts=experts)


class Top1(Gate):
    """Hard routing (as ADVMoE routes): weight 1 for the best expert, by a `conv` network.

    Dense dispatch: every expert runs and the weights mask, so that the model exports. Gradient
    estimate: straight-through; forward the one-hot weights, backward those of the softmax.
    """

    kind: Literal["top1"] = "top1"
    width: Width = 16

    @property
    def hard(self) -> bool:
        return True

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], experts: int
    ) -> nn.Module:
        return ConvNet(mean=mean, std=std, experts=experts, width=self.width)


GateConfig = Annotated[
    Conv | ResNet | Linear | Features | Uniform | Top1, Field(discriminator="kind")
]
"""A new gate: a class above and its name in this union."""
