"""What our networks consist of: convolutions in their order, for passes that are written out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

from torch import nn

from fmoe.models.branches import Trunk, shortcut_of
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
    """One of ours (not a subclass, whose forward may differ), no max-pool, its BatchNorms
    folded."""
    ours = type(module) in (ResNet18, ConvNet) and getattr(module, "pool", None) is None
    return ours and not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def layers(network: ResNet18 | Trunk | ConvNet) -> list[Layer]:
    """In order; layer i gives value i + 1, value 0 is the normalised image. The last value's mean
    over rows and columns goes to `head`."""
    if isinstance(network, ConvNet):
        return [Layer(network.conv1, 0), Layer(network.conv2, 1)]
    blocks = (block for block in network.blocks if isinstance(block, BasicBlock))
    return [Layer(network.conv, 0), *of_blocks(map(convolutions, blocks), 1)]


def convolutions(block: BasicBlock) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d | None]:
    """Its two, and that of its shortcut."""
    shortcut = None if block.downsample is None else shortcut_of(block.downsample)[0]
    return block.conv1, block.conv2, shortcut


def of_blocks(
    blocks: Iterable[tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d | None]], start: int
) -> list[Layer]:
    """The layers of blocks one after another, the first of which reads value `start`."""
    found: list[Layer] = []
    for place, (first, second, shortcut) in enumerate(blocks):
        source = start + 2 * place
        found += [Layer(first, source), Layer(second, source + 1, source, shortcut)]
    return found
