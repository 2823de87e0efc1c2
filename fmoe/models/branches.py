"""Experts that share a trunk: stem and first stages of a backbone, and a branch for each.

A branch is residual blocks and a head on the trunk's features. Side by side the branches are a few
wide convolutions: the first ones read the same features, so that their kernels stand one below the
other, and the later ones are grouped, a group a branch. BatchNorm works on channels apart, so that
this is the same function, in training too, as branch after branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fmoe.models.experts import BasicBlock, ResNet18, he_normal, picked
from fmoe.models.small_maps import by_matrices, by_windows, is_dense, is_of_windows, matrices
from fmoe.numerics.precision import at_least_float32
from fmoe.schema import Spec


class Shared(Spec):
    """`experts.trunk`: how much of the backbone all experts share."""

    stages: Annotated[int, Field(ge=1, le=3)] = 3
    """The stem and so many of the four stages; each expert's branch begins with the next one."""


class Branching(Spec):
    """`experts.branch`: what each expert has of its own after the trunk."""

    width: Annotated[int, Field(ge=1, le=8192)] | None = None
    """Channels; null: as many as the trunk gives."""
    blocks: Annotated[int, Field(ge=1, le=8)] = 1
    """Residual blocks; the first halves the size."""


class Trunk(nn.Module):
    """Images [B,C,H,W] in [0,1] to features [B,`channels`,h,w]: the first part of a ResNet-18."""

    def __init__(self, network: ResNet18, stages: int):
        super().__init__()
        self.normalize, self.conv, self.bn = network.normalize, network.conv, network.bn
        self.pool = network.pool
        self.blocks = network.blocks[: 2 * stages]
        last = self.blocks[-1]
        assert isinstance(last, BasicBlock)
        self.channels = last.conv2.out_channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        features = F.relu(self.bn(self.conv(self.normalize(x_BCHW))), inplace=True)
        if self.pool is not None:
            features = self.pool(features)
        deep: Tensor = self.blocks(features)
        return deep


class Branch(nn.Module):
    """Features [B,C,h,w] of the trunk to one expert's logits [B,K]."""

    def __init__(self, *, channels: int, width: int, blocks: int, classes: int):
        super().__init__()
        later = (BasicBlock(width, width) for _ in range(blocks - 1))
        self.blocks = nn.Sequential(BasicBlock(channels, width, 2), *later)
        self.head = nn.Linear(width, classes)
        he_normal(self)

    def forward(self, x_BChw: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(x_BChw).mean((2, 3)))
        return logits


class Branches(nn.Module):
    """One trunk and its branches, which have all the same shape."""

    def __init__(self, trunk: Trunk, branches: Sequence[Branch]):
        super().__init__()
        self.trunk = trunk
        self.branches: Sequence[Branch] = nn.ModuleList(branches)  # type: ignore[assignment]

    @property
    def experts(self) -> list[nn.Module]:
        """Each on images [B,C,H,W], with the trunk that it shares."""
        return [nn.Sequential(self.trunk, branch) for branch in self.branches]

    def features(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's [B,C,h,w], and their means over rows and columns in float32 [B,C]."""
        deep = self.trunk(x_BCHW)
        return deep, at_least_float32(deep.mean((2, 3)))

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's mean features [B,C] and the experts' logits [B,E,K], both in float32."""
        deep, pooled = self.features(x_BCHW)
        return pooled, at_least_float32(side_by_side(self.branches, deep))


def side_by_side(branches: Sequence[Branch], x_BChw: Tensor) -> Tensor:
    """Logits [B,E,K] of branches of one shape."""
    columns = zip(*(branch.blocks for branch in branches), strict=True)
    for place, blocks in enumerate(columns):
        x_BChw = block(blocks, x_BChw, len(branches) if place else 1)
    pooled_BEC = torch.unflatten(x_BChw.mean((2, 3)), 1, (len(branches), -1))
    weight_EKC, bias_EK = head_weights(branches)
    return torch.einsum("bec,ekc->bek", pooled_BEC, weight_EKC) + bias_EK


def head_weights(branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
    """Of their heads: weights [E,K,C] and biases [E,K]."""
    weights, biases = zip(*((b.head.weight, b.head.bias) for b in branches), strict=True)
    return torch.stack(weights), torch.stack(biases)


def block(blocks: Sequence[BasicBlock], x_BChw: Tensor, groups: int) -> Tensor:
    """The experts' blocks at one place, as one; groups: 1 where all read the same features."""
    shortcut = x_BChw
    if blocks[0].downsample is not None:
        convs, norms = zip(*(shortcut_of(block.downsample) for block in blocks), strict=True)
        shortcut = normalized(norms, convolved(convs, x_BChw, groups))
    first = convolved([block.conv1 for block in blocks], x_BChw, groups)
    x = F.relu(normalized([block.bn1 for block in blocks], first), inplace=True)
    second = convolved([block.conv2 for block in blocks], x, len(blocks))
    x = normalized([block.bn2 for block in blocks], second)
    x += shortcut
    return F.relu(x, inplace=True)


def shortcut_of(downsample: nn.Sequential | None) -> tuple[nn.Conv2d, nn.Module]:
    """Convolution and normalisation of a shortcut."""
    assert downsample is not None
    conv, norm = downsample
    assert isinstance(conv, nn.Conv2d)
    return conv, norm


def convolved(convs: Sequence[nn.Conv2d], x_BChw: Tensor, groups: int) -> Tensor:
    """The experts' convolutions as one."""
    weight, first = torch.cat([conv.weight for conv in convs]), convs[0]
    bias = torch.cat(tensors(conv.bias for conv in convs)) if first.bias is not None else None
    if is_dense(first, x_BChw):
        return by_matrices(x_BChw, matrices(weight, groups, *x_BChw.shape[2:]), bias)
    if groups == 1 and is_of_windows(first, x_BChw):
        return by_windows(x_BChw, weight, bias, first.stride[0])
    stride, padding = first.stride, int(first.padding[0])
    if first.kernel_size == (1, 1):  # see `Pointwise`, and it is faster
        x_BChw, stride = picked(x_BChw, stride), (1, 1)
    return F.conv2d(x_BChw, weight, bias, stride, padding, groups=groups)


def normalized(norms: Sequence[nn.Module], x_BChw: Tensor) -> Tensor:
    """Each expert's channels by its BatchNorm; a folded copy has none."""
    if isinstance(norms[0], nn.Identity):
        return x_BChw
    plain = [norm for norm in norms if type(norm) is nn.BatchNorm2d and norm.momentum is not None]
    if len(plain) < len(norms):  # synchronised, or of another kind
        parts = x_BChw.chunk(len(norms), 1)
        return torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)], 1)
    means, variances = (
        tensors(getattr(norm, name) for norm in plain) for name in ("running_mean", "running_var")
    )
    mean, variance = torch.cat(means), torch.cat(variances)
    weight, bias = (torch.cat([getattr(n, name) for n in plain]) for name in ("weight", "bias"))
    first = plain[0]
    assert first.momentum is not None
    how = first.training, first.momentum, first.eps
    out = F.batch_norm(x_BChw, mean, variance, weight, bias, *how)
    if first.training:
        with torch.no_grad():
            torch._foreach_copy_(means, list(mean.chunk(len(plain))))
            torch._foreach_copy_(variances, list(variance.chunk(len(plain))))
            torch._foreach_add_(tensors(norm.num_batches_tracked for norm in plain), 1)
    return out


def tensors(given: Iterable[Tensor | None]) -> list[Tensor]:
    """All of them are there."""
    return [tensor for tensor in given if tensor is not None]
