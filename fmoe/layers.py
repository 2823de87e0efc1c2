"""What our networks consist of: convolutions in their order, for passes that are written out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.experts import BasicBlock, ResNet18
from fmoe.gates import ConvNet

onednn = torch.ops.mkldnn


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
    found = [Layer(network.conv, 0)]
    for block in network.blocks:
        assert isinstance(block, BasicBlock)
        shortcut = None if block.downsample is None else block.downsample[0]
        assert shortcut is None or isinstance(shortcut, nn.Conv2d)
        start = len(found)
        found += [Layer(block.conv1, start), Layer(block.conv2, start + 1, start, shortcut)]
    return found


def rectified(
    conv: nn.Conv2d, x: Tensor, added: Tensor | None = None, padding: tuple[int, ...] | None = None
) -> Tensor:
    """relu(conv(x) + added); padding in place of conv's own."""
    out: Tensor
    zeros = conv.padding if padding is None else padding
    if x.device.type != "cpu" or not fusing(x.dtype):
        out = F.conv2d(x, conv.weight, conv.bias, conv.stride, zeros)
        return F.relu_(out if added is None else out.add_(added))
    fused, shape = onednn._convolution_pointwise, (zeros, conv.stride, conv.dilation, conv.groups)
    if added is None:
        out = fused(x, conv.weight, conv.bias, *shape, "relu", [], "")
    else:
        both = x, added, conv.weight, conv.bias, *shape
        out = fused.binary(*both, "add", 1.0, "relu", [], "")
    return out


@cache
def fusing(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there, for this precision; its operators are not torch's public ones."""
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (there and hasattr(onednn, "_convolution_pointwise")):
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported()
    )
