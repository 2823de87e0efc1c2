"""What workers exchange that have the same images and share the experts out among them.

Forward each expert's logits, backward the gradient of the images: those two make every worker's
mixture the whole one (the conjugate operations of Megatron-LM, arXiv 1909.08053, section 3). What
all of them compute, such as the gate, counts as one share each, so that its gradients are to be
added up like the images'.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fmoe.numerics.draw import shard
from fmoe.numerics.worker import Group


class SumOfGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, peers: Group, dtype: torch.dtype | None) -> Tensor:
        ctx.peers, ctx.dtype = peers, dtype
        return input.view_as(input)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        sent = gradient.to(ctx.dtype or gradient.dtype, copy=True)
        # in the memory's own order, and the same one for all
        total = ctx.peers.sum_(sent.contiguous(memory_format=torch.channels_last))
        return total.to(gradient.dtype), None, None


class ShareOfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, peers: Group) -> Tensor:
        ctx.size = peers.size
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.size, None


class Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_BEK: Tensor, peers: Group, sizes: list[int]) -> Tensor:
        ctx.start = sum(sizes[: peers.rank])
        ctx.size = sizes[peers.rank]
        return peers.gathered(own_BEK, sizes, 1)

    @staticmethod
    def backward(ctx: Any, gradient_BEK: Tensor) -> tuple[Tensor, None, None]:
        return gradient_BEK.narrow(1, ctx.start, ctx.size), None, None


@dataclass(frozen=True)
class SharedExperts:
    """Experts shared out among `peers`, in their order; alone: all are held here.

    sent: the type in which gradients of images travel; None: as they are.
    """

    peers: Group = field(default_factory=Group)
    sent: torch.dtype | None = None

    @property
    def alone(self) -> bool:
        return self.peers.size == 1

    def held(self, experts: int) -> range:
        """The places of those that this worker holds."""
        rows = shard(experts, self.peers.rank, self.peers.size)
        return range(rows.start, rows.stop)

    def images(self, x_BCHW: Tensor) -> Tensor:
        """The same, whose gradient is that of all peers' experts."""
        if self.alone or not x_BCHW.requires_grad:
            return x_BCHW
        summed: Tensor = SumOfGradients.apply(x_BCHW, self.peers, self.sent)
        return summed

    def of_all(self, x: Tensor) -> Tensor:
        """What all peers have computed: the gradient is one worker's share of it."""
        if self.alone:
            return x
        share: Tensor = ShareOfGradient.apply(x, self.peers)
        return share

    def gathered(self, own_BEK: Tensor, experts: int) -> Tensor:
        """All experts' logits [B,E,K] from those that are held here."""
        if self.alone:
            return own_BEK
        whole: Tensor = Gathered.apply(own_BEK, self.peers, self.peers.shares(experts))
        return whole


ALONE = SharedExperts()
