"""Training losses: like attacks, the configuration is the loss, a frozen value that is called.

`loss(forward, x, x_adv, y)` gives the loss per image [B] and the log-probabilities or logits
[B,K] of the adversarial images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fmoe.numerics.precision import at_least_float32
from fmoe.schema import Spec

Forward = Callable[[Tensor], Tensor]


class CrossEntropy(Spec):
    """Cross-entropy on the adversarial images (PGD-AT, arXiv 1706.06083)."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def __call__(
        self, forward: Forward, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = at_least_float32(forward(x_adv))
        smoothing = self.label_smoothing
        return F.cross_entropy(out, y, label_smoothing=smoothing, reduction="none"), out


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) [B] of log-probabilities [B,K]."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(1)


class Trades(Spec):
    """CE(x, y) + beta * KL(p(x) || p(x_adv)) (arXiv 1901.08573). Pair it with an attack of
    `loss: kl`, which ascends the same divergence."""

    kind: Literal["trades"] = "trades"
    beta: Annotated[float, Field(ge=0, le=1e3)] = 6.0

    def __call__(
        self, forward: Forward, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        clean, out = at_least_float32(forward(x)), at_least_float32(forward(x_adv))
        moved = divergence(F.log_softmax(clean, 1), F.log_softmax(out, 1))
        return F.cross_entropy(clean, y, reduction="none") + self.beta * moved, out


class Mart(Spec):
    """BCE(x_adv, y) + beta * KL(p(x) || p(x_adv)) * (1 - p_y(x)), where BCE also pushes down the
    likeliest wrong class (MART, Wang et al., ICLR 2020). Its attack ascends the cross-entropy."""

    kind: Literal["mart"] = "mart"
    beta: Annotated[float, Field(ge=0, le=1e3)] = 6.0

    def __call__(
        self, forward: Forward, x: Tensor, x_adv: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor]:
        clean, out = at_least_float32(forward(x)), at_least_float32(forward(x_adv))
        log_p, log_q = F.log_softmax(clean, 1), F.log_softmax(out, 1)
        right = F.one_hot(y, out.shape[1]).bool()
        wrong = log_q.masked_fill(right, -math.inf).argmax(1)
        # log(1 - q_wrong), of all other classes
        others = log_q.masked_fill(F.one_hot(wrong, out.shape[1]).bool(), -math.inf)
        bce = F.nll_loss(log_q, y, reduction="none") - others.logsumexp(1)
        moved = divergence(log_p, log_q)
        doubt = 1 - log_p.gather(1, y[:, None])[:, 0].exp()
        return bce + self.beta * moved * doubt, out


LossConfig = Annotated[CrossEntropy | Trades | Mart, Field(discriminator="kind")]
"""A new loss: a class above and its name in this union."""


def own_losses(logits_BEK: Tensor, y: Tensor, first: int) -> Tensor:
    """Cross-entropy [B] of the expert that each image is dealt to, in turn over the global batch;
    first: the place of the first image in that."""
    rows = torch.arange(len(y), device=y.device)
    dealt = (rows + first) % logits_BEK.shape[1]
    return F.cross_entropy(logits_BEK[rows, dealt], y, reduction="none")


def gate_balance(weights_BE: Tensor) -> Tensor:
    """KL(mean weights || uniform) = log E - H(mean weights): 0 when all experts share equally."""
    mean_E = weights_BE.mean(0)
    return math.log(len(mean_E)) + (mean_E * mean_E.clamp(min=1e-12).log()).sum()
