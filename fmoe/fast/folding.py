"""Copies of our networks for passes without training: BatchNorm folded, channels last.

In evaluation mode BatchNorm is one multiplication and addition a channel, which the convolution
before it can do. A copy computes the same up to rounding, in less time.
"""

from __future__ import annotations

import copy
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fmoe.models.branches import Trunk
from fmoe.models.experts import BasicBlock, ResNet18
from fmoe.models.gates import ConvNet

IN_ORDER = (ResNet18, Trunk, BasicBlock, ConvNet, nn.Sequential)
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
            # not named_children(), which leaves out a module that is there twice
            for (first, conv), (second, norm) in pairwise(own._modules.items()):
                if isinstance(conv, nn.Conv2d) and foldable(norm):
                    assert isinstance(norm, nn.BatchNorm2d)
                    twin = other.get_submodule(first)
                    assert isinstance(twin, nn.Conv2d)
                    twin.bias = nn.Parameter(torch.zeros_like(norm.bias), requires_grad=False)
                    setattr(other, second, nn.Identity())
                    self.folds.append((conv, norm, twin))
        for module in self.module.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
        self.module.to(memory_format=torch.channels_last)
        self.made_of_weights: list[dict[Any, Tensor]] = []  # to be made anew after a refresh
        folded = {id(tensor) for _, _, twin in self.folds for tensor in (twin.weight, twin.bias)}
        ours = dict(chain(model.named_parameters(), model.named_buffers()))
        self.copies: list[tuple[Tensor, Tensor]] = [
            (ours[name], tensor)
            for name, tensor in chain(self.module.named_parameters(), self.module.named_buffers())
            if name in ours and id(tensor) not in folded
        ]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the model's weights and statistics as they are now.

        All layers at once: one after another they would be over a thousand launches on a GPU.
        """
        if self.folds:
            convs, norms, twins = (list(column) for column in zip(*self.folds, strict=True))
            scales = torch._foreach_add([n.running_var for n in norms], [n.eps for n in norms])
            torch._foreach_rsqrt_(scales)
            torch._foreach_mul_(scales, [n.weight for n in norms])
            columns = [scale[:, None, None, None] for scale in scales]
            weights = torch._foreach_mul([conv.weight for conv in convs], columns)
            means = [n.running_mean if c.bias is None else n.running_mean - c.bias
                     for c, n in zip(convs, norms, strict=True)]  # fmt: skip
            shifts = torch._foreach_mul(means, scales)
            torch._foreach_neg_(shifts)
            torch._foreach_add_(shifts, [n.bias for n in norms])
            torch._foreach_copy_([twin.weight for twin in twins], weights)
            torch._foreach_copy_([twin.bias for twin in twins], shifts)
        for made in self.made_of_weights:
            made.clear()
        if self.copies:
            theirs, own = (list(column) for column in zip(*self.copies, strict=True))
            torch._foreach_copy_(own, theirs)


def foldable(module: nn.Module | None) -> bool:
    """BatchNorm with weights and statistics of its own."""
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats


def folded(model: nn.Module) -> nn.Module:
    """The function of `model` in evaluation mode, as it is now."""
    return Twin(model).module
