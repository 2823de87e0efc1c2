"""The experts' backbones, each a configuration that builds its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator
from torch import nn

from fmoe.models.backbone import Backbone
from fmoe.models.experts import PreActResNet18, ResNet18, Stem, WideResNet
from fmoe.models.of_timm import Timm


class ResNet18Backbone(Backbone):
    """ResNet-18 (arXiv 1512.03385)."""

    kind: Literal["resnet18"] = "resnet18"
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    """Channels of the first stage; 64 is ResNet-18."""
    stem: Stem = "cifar"
    """A 3x3 convolution around every pixel; patches of 4x4 pixels, two apart; or ImageNet's 7x7 and
    a max-pool."""

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        return ResNet18(mean=mean, std=std, classes=classes, width=self.width, stem=self.stem)


class PreActResNet18Backbone(Backbone):
    """Pre-activation ResNet-18 (arXiv 1603.05027), as in adversarial training on CIFAR."""

    kind: Literal["preact_resnet18"] = "preact_resnet18"
    width: Annotated[int, Field(ge=1, le=1024)] = 64
    """Channels of the first stage; 64 is PreActResNet-18."""

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        return PreActResNet18(mean=mean, std=std, classes=classes, width=self.width)


class WideResNetBackbone(Backbone):
    """WideResNet (arXiv 1605.07146), as in adversarial training on CIFAR."""

    kind: Literal["wideresnet"] = "wideresnet"
    depth: Annotated[int, Field(ge=10, le=1000)] = 28
    """Convolutions in a row, 6 n + 4: 28 and 34 are the usual ones."""
    width: Annotated[int, Field(ge=1, le=64)] = 10
    """Times 16 channels in the first stage."""

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"{depth} is not 6 n + 4, such as 10, 16, 22, 28, 34")
        return depth

    def build(
        self, *, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], classes: int
    ) -> nn.Module:
        return WideResNet(mean=mean, std=std, classes=classes, depth=self.depth, width=self.width)


def with_kind(value: Any) -> Any:
    """ResNet-18 needs no name: it was there before the others."""
    return {"kind": "resnet18", **value} if isinstance(value, dict) else value


BackboneConfig = Annotated[
    ResNet18Backbone | PreActResNet18Backbone | WideResNetBackbone | Timm,
    Field(discriminator="kind"),
    BeforeValidator(with_kind),
]
"""A new backbone: a class above and its name in this union, as `… | Another`."""
