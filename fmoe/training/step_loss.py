"""What a training step descends: the loss of one forward pass, and the sums to log."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmoe.config import Joint, Phase
from fmoe.losses import gate_balance, own_losses
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
        self.balance, self.own = (
            (phase.balance, phase.own) if isinstance(phase, Joint) else (0.0, 0.0)
        )
        self.scale = world_size / phase.batch_size

    def forward(self, x: Tensor, x_adv: Tensor, y: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """first: the place of the first image in the global batch."""
        passes: list[tuple[Tensor, Tensor]] = []  # gate's log-weights [B,E], logits [B,E,K]

        def run(images: Tensor) -> Tensor:
            with self.numerics.autocast(images.device):
                if not isinstance(self.model, Mixture):
                    plain: Tensor = self.model(images)
                    return plain
                passes.append(self.model.parts(images))
                return self.model.combine(*passes[-1])

        losses, out = self.loss(run, x, x_adv, y)
        loss = losses.sum() * self.scale
        correct = (out.detach().argmax(1) == y).sum()
        sums = [losses.detach().sum(), correct]
        if passes:
            log_weights, logits = passes[-1]  # of the adversarial images
            weights = log_weights.exp()
            if self.balance:
                share = len(y) * self.scale
                loss = loss + self.balance * gate_balance(weights) * share
            if self.own:
                loss = loss + self.own * own_losses(logits, y, first).sum() * self.scale
            sums += list(weights.detach().sum(0))
        return loss, torch.stack([s.double() for s in sums])
