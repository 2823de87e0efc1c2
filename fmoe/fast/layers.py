"""What our networks consist of: convolutions in their order, for passes that are written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from torch import nn

from fmoe.models.experts import BasicBlock, ResNet18
from fmoe.models.gates import ConvNet


@dataclass(frozen=True)
class Layer:
    """relu(conv(value) + shortcut(value)); source and added are places in a list of values."""

    conv: nn.Conv2d
    source: int
    added: int | None = None
    shortcut: nn.Conv2d | None = None


def known(module: nn.Module) -> TypeGuard[ResNet18 | ConvNet]:
    """One of ours (not a subclass, whose forward may differ), its BatchNorms folded."""
    ours = type(module) in (ResNet18, ConvNet)
    return ours and not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def layers(network: ResNet18 | ConvNet) -> list[Layer]:
    """In order; layer i gives value i + 1, value 0 is the normalised image. The last value's mean
    over rows and columns goes to `head`."""
    if isinstance(network, ConvNet):
        return [Layer(network.conv1, 0), Layer(network.conv2, 1)]
    convolutions = [Layer(network.conv, 0)]
    for block in network.blocks:
        assert isinstance(block, BasicBlock)
        shortcut = None if block.downsample is None else block.downsample[0]
        assert shortcut is None or isinstance(shortcut, nn.Conv2d)
        start = len(convolutions)
        convolutions += [Layer(block.conv1, start), Layer(block.conv2, start + 1, start, shortcut)]
    return convolutions
