"""Copies of our networks for passes without training: BatchNorm folded, channels last.

In evaluation mode BatchNorm is one multiplication and addition a channel, which the convolution
before it can do. The copy computes the same up to float32's rounding, in less time.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fmoe.experts import BasicBlock, ResNet18
from fmoe.gates import ConvNet

IN_ORDER = (ResNet18, BasicBlock, ConvNet, nn.Sequential)
"""Modules that call a BatchNorm on what the convolution declared just before it gives."""


def folded(model: nn.Module) -> nn.Module:
    """A frozen copy [B,C,H,W] to [B,K] of the same function as `model` in evaluation mode.

    Folded are `IN_ORDER`'s own layers; another module keeps its BatchNorm.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(twin.modules()):
        if type(module) not in IN_ORDER:
            continue
        layers = list(module.named_children())
        for (first, conv), (second, norm) in pairwise(layers):
            if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return twin.to(memory_format=torch.channels_last)
