"""Copies of our networks for passes without training: BatchNorm folded, channels last.

In evaluation mode BatchNorm is one multiplication and addition a channel, which the convolution
before it can do. A copy computes the same up to rounding, in less time.
"""

from __future__ import annotations

import copy
from itertools import chain, pairwise

import torch
from torch import Tensor, nn

from fmoe.experts import BasicBlock, ResNet18
from fmoe.gates import ConvNet

IN_ORDER = (ResNet18, BasicBlock, ConvNet, nn.Sequential)
"""Modules that call a BatchNorm on what the convolution declared just before it gives."""


class Twin:
    """A frozen copy of `model` in evaluation mode that can follow it through its training.

    `module` maps [B,C,H,W] to [B,K] as model does; folded are `IN_ORDER`'s own layers, another
    module keeps its BatchNorm. With dtype bfloat16 weights are kept in it: call under autocast,
    which then casts none of them.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None):
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.folds: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        for own, other in zip(list(model.modules()), list(self.module.modules()), strict=True):
            if type(own) not in IN_ORDER:
                continue
            for (first, conv), (second, norm) in pairwise(list(own.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    twin = other.get_submodule(first)
                    assert isinstance(twin, nn.Conv2d)
                    twin.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)
                    setattr(other, second, nn.Identity())
                    self.folds.append((conv, norm, twin))
        for module in self.module.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
        self.module.to(memory_format=torch.channels_last)
        folded = {id(twin.weight) for _, _, twin in self.folds}
        ours = dict(chain(model.named_parameters(), model.named_buffers()))
        self.copies: list[tuple[Tensor, Tensor]] = [
            (ours[name], tensor)
            for name, tensor in chain(self.module.named_parameters(), self.module.named_buffers())
            if name in ours and id(tensor) not in folded
        ]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the model's weights and statistics as they are now."""
        for conv, norm, twin in self.folds:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            assert twin.bias is not None
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
            twin.weight.copy_(conv.weight * scale[:, None, None, None])
            twin.bias.copy_(norm.bias - mean * scale)
        for tensor, twin_tensor in self.copies:
            twin_tensor.copy_(tensor)


def folded(model: nn.Module) -> nn.Module:
    """The function of `model` in evaluation mode, as it is now."""
    return Twin(model).module
