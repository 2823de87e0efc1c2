"""What a training step descends: the loss of one forward pass, and the sums to log."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmoe.config import Joint, Phase
from fmoe.losses import gate_balance
from fmoe.models.mixture import Mixture
from fmoe.numerics.precision import Numerics


class StepLoss(nn.Module):
    """Loss and sums to log, inside one forward: what DDP wraps.

    The loss is the sum over this rank's images divided by the global batch, times the number of
    workers: DDP's mean over workers is then the mean over the global batch, whatever the shares.
    """

    def __init__(self, model: nn.Module, phase: Phase, numerics: Numerics, world_size: int):
        super().__init__()
        self.model, self.loss, self.numerics = model, phase.loss, numerics
        self.balance = phase.balance if isinstance(phase, Joint) else 0.0
        self.scale = world_size / phase.batch_size

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        weights: list[Tensor] = []

        def run(images: Tensor) -> Tensor:
            with self.numerics.autocast(images.device):
                if isinstance(self.model, Mixture):
                    out, gate_weights = self.model.outputs(images)
                    weights.append(gate_weights)
                else:
                    out = self.model(images)
            return out

        losses, out = self.loss(run, x, x_adv, y)
        loss = losses.sum() * self.scale
        correct = (out.detach().argmax(1) == y).sum()
        sums = [losses.detach().sum(), correct]
        if weights:
            if self.balance:
                share = len(y) * self.scale
                loss = loss + self.balance * gate_balance(weights[-1]) * share
            sums += list(weights[-1].detach().sum(0))
        return loss, torch.stack([s.double() for s in sums])
