"""The fractional mixture of experts (Divided We Fall, arXiv 2512.20821).

Every expert runs on every image; the gate's softmax decides the fractions. Combining is exact
about probabilities: log sum_e w_e p_e, computed in float32 as logsumexp(log w_e + log p_e).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fmoe.models.branches import Branches
from fmoe.models.confidence import TwoParts
from fmoe.numerics.precision import at_least_float32
from fmoe.numerics.shared_experts import ALONE, SharedExperts

Mixing = Literal["probabilities", "logits"]
LARGEST_LOG_RATIO = 20.0  # bounds the straight-through gradient where p_best is near 0


def mix_probabilities(log_weights_BE: Tensor, logits_BEK: Tensor) -> Tensor:
    """log sum_e w_e softmax(z_e): log-probabilities [B,K]."""
    return torch.logsumexp(log_weights_BE[:, :, None] + F.log_softmax(logits_BEK, 2), 1)


def mix_logits(weights_BE: Tensor, logits_BEK: Tensor) -> Tensor:
    """log softmax(sum_e w_e z_e): log-probabilities [B,K]."""
    return F.log_softmax((weights_BE[:, :, None] * logits_BEK).sum(1), 1)


def straight_through(log_weights_BE: Tensor) -> Tensor:
    """One-hot forward, the softmax's gradient backward [B,E]."""
    soft = log_weights_BE.exp()
    hard = F.one_hot(log_weights_BE.argmax(1), log_weights_BE.shape[1]).to(soft.dtype)
    return hard + soft - soft.detach()


def mix_hard_probabilities(weights_BE: Tensor, logits_BEK: Tensor) -> Tensor:
    """log sum_e w_e p_e for straight-through weights, relative to the chosen expert's p."""
    log_probs_BEK = F.log_softmax(logits_BEK, 2)
    chosen_BK = (log_probs_BEK * weights_BE.detach()[:, :, None]).sum(1).detach()
    ratio_BEK = (log_probs_BEK - chosen_BK[:, None]).clamp(max=LARGEST_LOG_RATIO).exp()
    return chosen_BK + (weights_BE[:, :, None] * ratio_BEK).sum(1).log()


@contextmanager
def keeping_buffers(module: nn.Module) -> Iterator[None]:
    """Forward passes in the block leave BatchNorm's running statistics as they were."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def recomputing(
    module: nn.Module,
) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds the forward pass and its repetition in the backward pass."""
    return nullcontext(), keeping_buffers(module) if module.training else nullcontext()


class Mixture(nn.Module):
    """Images [B,C,H,W] in [0,1] to log-probabilities [B,K], through all experts and the gate.

    checkpointing: an expert's activations are computed again when its gradient is, so that one
    expert's are kept at a time. shared: among which workers the experts are shared out; then
    `experts` are those that this one holds (see `hold`).
    """

    OWN = "experts"
    """The list of what each expert has of its own, by the expert's place."""

    def __init__(
        self,
        experts: Sequence[nn.Module],
        gate: nn.Module,
        *,
        temperature: float = 1.0,
        mixing: Mixing = "probabilities",
        hard: bool = False,
        confidence: TwoParts | None = None,
    ):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.gate = gate
        self.temperature, self.mixing, self.hard = temperature, mixing, hard
        self.confidence = confidence
        self.checkpointing = False
        self.shared, self.count = ALONE, len(experts)

    def hold(self, shared: SharedExperts) -> None:
        """Leaves of all experts those of this worker, under the names that they have among all."""
        own, held = self.get_submodule(self.OWN), shared.held(self.count)
        for name in [name for name, _ in own.named_children() if int(name) not in held]:
            delattr(own, name)
        self.shared = shared

    @property
    def heads(self) -> list[nn.Module]:
        """Each expert's last layer."""
        return [expert.get_submodule("head") for expert in self.experts]

    def log_gate_weights(self, x_BCHW: Tensor) -> Tensor:
        """log softmax(gate(x) / temperature) in float32 [B,E], before any hard choice."""
        return self.log_weights(self.gate(x_BCHW))

    def log_weights(self, gate_logits_BE: Tensor) -> Tensor:
        return F.log_softmax(at_least_float32(gate_logits_BE) / self.temperature, 1)

    def gate_weights(self, x_BCHW: Tensor) -> Tensor:
        """The fraction each expert contributes [B,E]; rows sum to 1."""
        log_weights = self.log_gate_weights(x_BCHW)
        return straight_through(log_weights) if self.hard else log_weights.exp()

    def expert_logits(self, x_BCHW: Tensor) -> Tensor:
        """Each expert's own logits in float32 [B,E,K], also of those that other workers hold."""
        own = [at_least_float32(self._run(expert, x_BCHW)) for expert in self.experts]
        return self.shared.gathered(torch.stack(own, 1), self.count)

    def _run(self, expert: nn.Module, x_BCHW: Tensor) -> Tensor:
        if not (self.checkpointing and torch.is_grad_enabled()):
            logits: Tensor = expert(x_BCHW)
            return logits
        again: Tensor = checkpoint(
            expert, x_BCHW, use_reentrant=False, context_fn=partial(recomputing, expert)
        )
        return again

    def combine(self, log_weights_BE: Tensor, logits_BEK: Tensor) -> Tensor:
        """Log-probabilities [B,K] of the experts' logits under the gate's (soft) log-weights."""
        if self.confidence:
            return self.confidence.combine(self.mix, log_weights_BE, logits_BEK)
        return self.mix(log_weights_BE, logits_BEK)

    def mix(self, log_weights_BE: Tensor, logits_BEK: Tensor) -> Tensor:
        """The same without `confidence`, also of some of the experts."""
        if self.hard:
            weights = straight_through(log_weights_BE)
            mix = mix_logits if self.mixing == "logits" else mix_hard_probabilities
            return mix(weights, logits_BEK)
        if self.mixing == "logits":
            return mix_logits(log_weights_BE.exp(), logits_BEK)
        return mix_probabilities(log_weights_BE, logits_BEK)

    def parts(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The gate's (soft) log-weights [B,E] and the experts' logits [B,E,K] of one pass."""
        x_BCHW = self.shared.images(x_BCHW)
        gate_logits = self.shared.of_all(self.gate(x_BCHW))
        return self.log_weights(gate_logits), self.expert_logits(x_BCHW)

    def outputs(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B,K] and the soft gate weights [B,E] of one pass."""
        log_weights, logits = self.parts(x_BCHW)
        return self.combine(log_weights, logits), log_weights.exp()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.outputs(x_BCHW)[0]


class BranchedMixture(Mixture):
    """The same of experts that share a trunk; the gate may read the trunk's features.

    of_features: the gate maps the trunk's mean features [B,C] to logits [B,E], not the images.
    """

    OWN = "body.branches"

    def __init__(
        self,
        body: Branches,
        gate: nn.Module,
        *,
        of_features: bool = False,
        temperature: float = 1.0,
        mixing: Mixing = "probabilities",
        hard: bool = False,
        confidence: TwoParts | None = None,
    ):
        how: dict[str, Any] = {"temperature": temperature, "mixing": mixing, "hard": hard}
        super().__init__((), gate, **how, confidence=confidence)
        del self.experts  # the body's
        self.body, self.of_features, self.count = body, of_features, len(body.branches)

    @property
    def experts(self) -> Sequence[nn.Module]:  # type: ignore[override]
        """Each maps images [B,C,H,W] to logits [B,K], through the trunk that it shares."""
        return self.body.experts

    @property
    def heads(self) -> list[nn.Module]:
        return [branch.head for branch in self.body.branches]

    def log_gate_weights(self, x_BCHW: Tensor) -> Tensor:
        read = self.body.features(x_BCHW)[1] if self.of_features else x_BCHW
        return self.log_weights(self.gate(read))

    def expert_logits(self, x_BCHW: Tensor) -> Tensor:
        return self._pass(x_BCHW)[1]

    def parts(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x_BCHW = self.shared.images(x_BCHW)
        features_BC, logits_BEK = self._pass(x_BCHW)
        read = features_BC if self.of_features else x_BCHW
        return self.log_weights(self.shared.of_all(self.gate(read))), logits_BEK

    def _pass(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's mean features [B,C] and the experts' logits [B,E,K]."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            features, own = self.body(x_BCHW)
        else:
            deep, features = self.body.features(x_BCHW)
            logits = [at_least_float32(self._run(branch, deep)) for branch in self.body.branches]
            own = torch.stack(logits, 1)
        return features, self.shared.gathered(own, self.count)
