"""BatchNorm over the images of several workers, on any device.

torch's own SyncBatchNorm runs on GPUs only; this one is plain differentiable all-reduces, so that
training on one CPU worker and on several gives the same numbers up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fmoe.numerics.precision import at_least_float32
from fmoe.numerics.worker import Group


class SumOverWorkers(torch.autograd.Function):
    """All workers' tensors, added; a gradient is the sum of all workers' gradients."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, workers: Group) -> Tensor:
        ctx.workers = workers
        return workers.sum_(input.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return sum_over(ctx.workers, gradient), None


def sum_over(workers: Group, tensor: Tensor) -> Tensor:
    total: Tensor = SumOverWorkers.apply(tensor, workers)
    return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Statistics over all `workers`' images in training mode; else plain BatchNorm."""

    workers = Group()

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.workers.size == 1:
            return super().forward(input)
        x = at_least_float32(input)
        count = x.new_full((1,), x.numel() / x.shape[1])
        sums = torch.cat([x.sum((0, 2, 3)), (x * x).sum((0, 2, 3)), count])
        total = sum_over(self.workers, sums)
        size, channels = total[-1], x.shape[1]
        mean = total[:channels] / size
        var = (total[channels:-1] / size - mean * mean).clamp(min=0)  # of a constant: rounding
        self._update(mean.detach(), var.detach(), size.detach())
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor, size: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * size / (size - 1), self.momentum)


def synchronize(model: nn.Module, workers: Group) -> None:
    """Turns every BatchNorm of the model into one over the workers' images, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d
            module.workers = workers  # type: ignore[assignment]
