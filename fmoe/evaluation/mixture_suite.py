"""Attacks made for mixtures, and the figures that show where a mixture is soft.

All of them read the experts' logits and the gate's weights from one pass, so that an iterate is
judged by the mixture as it is, whatever it was crafted through. They run on the images that every
attack before them has left; what they break counts in the worst case.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.attacks import PGD, Objective, eval_mode, margin, objective_loss
from fmoe.attacks.threat import Threat
from fmoe.evaluation.chunk import Chunk, Columns, assert_within, right, survivors, verdict
from fmoe.evaluation.guarded import Guarded
from fmoe.evaluation.iterated import STEPS, Pass, ascending, one_after_another, until_broken
from fmoe.evaluation.outputs import NONE, classes
from fmoe.evaluation.standard import Given
from fmoe.evaluation.witness import Left, Odd
from fmoe.models.confidence import Mix, TwoParts
from fmoe.models.mixture import Mixture, mix_logits, mix_probabilities
from fmoe.numerics.draw import Draw

TEMPERATURE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the gate's temperature, in the sweep."""
SOFT = 10.0
"""The soft surrogate's: the gate's temperature times this, experts' logits within this range."""

LOSSES: tuple[Objective, ...] = ("ce", "margin")

Crafting = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log gate weights [b,E], expert logits [b,E,K], rows [b]) to log-probabilities [b,K]."""


def why_not(model: nn.Module) -> str | None:
    """Why the suite cannot judge a model; None where it can."""
    if not isinstance(model, Mixture):
        return "not a mixture of experts"
    return "one expert" if len(model.experts) < 2 else None


def through(model: Mixture, y: Tensor, crafting: Crafting, loss: Objective = "ce") -> Pass:
    """Ascends the loss of another combination of the parts; judged by the mixture."""

    def run(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        log_w, z = model.log_gate_weights(x), model.expert_logits(x)
        ascended = objective_loss(loss, crafting(log_w, z, rows), y[rows], None)
        return ascended, model.combine(log_w, z)

    return run


def gate_only(model: Mixture, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """Steers the weights toward the experts that are wrong; the experts' own gradient is cut."""

    def run(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        log_w, z = model.log_gate_weights(x), model.expert_logits(x)
        losses = torch.stack(
            [F.cross_entropy(z[:, e], chunk.y[rows], reduction="none") for e in range(z.shape[1])],
            1,
        )
        return (log_w.exp() * losses.detach()).sum(1), model.combine(log_w, z)

    start = survivors(before, chunk.y)
    attacked = until_broken(run, chunk, start, "gate-only", threat=threat)
    return verdict("gate-only", start, attacked.broken, attacked.prediction), []


def frozen_gate(model: Mixture, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """Crafts with the clean image's weights: against the mixture as it is (an attack, with the
    cross-entropy and with the margin, which a hard gate's own gradient would drown), and against
    the mixture with those weights (`frozen`: what is left without routing)."""
    with torch.no_grad():
        clean = model.log_gate_weights(chunk.x)

    def frozen(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        outputs = model.combine(clean[rows], model.expert_logits(x))
        return F.nll_loss(outputs, chunk.y[rows], reduction="none"), outputs

    everyone = right(before, chunk.y)
    columns = _restarts(chunk, before, threat, "frozen-gate", {
        loss: through(model, chunk.y, lambda _, z, rows: model.combine(clean[rows], z), loss)
        for loss in LOSSES
    })  # fmt: skip
    other = chunk.of_another()  # not the model's verdict
    without = until_broken(frozen, other, everyone, "frozen", threat=threat)
    return columns | {"frozen": everyone & ~without.broken}, []


def surrogates(model: Mixture) -> dict[str, Crafting]:
    """Other ways of combining the same parts, through which gradients may pass more freely."""

    def uniform(log_w: Tensor) -> Tensor:
        return torch.full_like(log_w, 1 / log_w.shape[1])

    def soft(log_w: Tensor, z: Tensor, _rows: Tensor) -> Tensor:
        span = (z.amax(2, keepdim=True) - z.amin(2, keepdim=True)).detach()
        return mix_probabilities(F.log_softmax(log_w / SOFT, 1), z / (span / SOFT).clamp_min(1))

    return {
        "probabilities": lambda log_w, z, _: mix_probabilities(log_w, z),
        "logits": lambda log_w, z, _: mix_logits(log_w.exp(), z),
        "uniform-probabilities": lambda log_w, z, _: mix_probabilities(uniform(log_w).log(), z),
        "uniform-logits": lambda log_w, z, _: mix_logits(uniform(log_w), z),
        "soft": soft,
    }


def without_maps(two: TwoParts, mix: Mix) -> dict[str, Crafting]:
    """What `confidence` may hide, which maps the robust part and bounds the other's weight: the
    sum without the map, and the robust part alone, which decides where it is sure."""

    def robust(log_w: Tensor, z: Tensor, _rows: Tensor) -> Tensor:
        return two.part(mix, log_w, z, two.robust)

    def unmapped(log_w: Tensor, z: Tensor, rows: Tensor) -> Tensor:
        return two.sum(two.part(mix, log_w, z, two.accurate), robust(log_w, z, rows))

    return {"unmapped": unmapped, "robust-part": robust}


def mixings(model: Mixture, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """Surrogate mixings: gradient masking by the way in which outputs are combined."""
    itself = not (model.hard or model.confidence)
    runs = {
        name: through(model, chunk.y, crafting)
        for name, crafting in surrogates(model).items()
        if not (itself and name == model.mixing)
    }
    if model.confidence:
        runs |= {
            f"{name}/{loss}": through(model, chunk.y, crafting, loss)
            for name, crafting in without_maps(model.confidence, model.mix).items()
            for loss in LOSSES
        }
    return _restarts(chunk, before, threat, "surrogate", runs), []


def toward(model: Mixture, y: Tensor, expert: int) -> Pass:
    """Ascends the experts' margins, each over the range of its own logits: this expert's with half
    of the weight and what the gate gives it. In a mixture of probabilities an expert that is sure
    has next to no gradient, whatever its weight."""

    def run(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        log_w, z = model.log_gate_weights(x), model.expert_logits(x)
        span = (z.amax(2) - z.amin(2)).detach().clamp_min(1)
        margins = torch.stack([margin(z[:, e], y[rows]) for e in range(z.shape[1])], 1) / span
        one = F.one_hot(torch.tensor(expert, device=z.device), z.shape[1])
        return ((log_w.exp() / 2 + one / 2) * margins).sum(1), model.combine(log_w, z)

    return run


def reweighted(model: Mixture, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """A restart for each expert, which then has at least half of the weight in the loss."""
    runs = {str(expert): toward(model, chunk.y, expert) for expert in range(len(model.experts))}
    return _restarts(chunk, before, threat, "reweighted", runs), []


def _restarts(
    chunk: Chunk,
    before: Columns,
    threat: Threat,
    name: str,
    runs: Mapping[str, Pass],
) -> Columns:
    labelled = [((label,), run) for label, run in runs.items()]
    return one_after_another(labelled, chunk, survivors(before, chunk.y), name, threat=threat)


def transfer(model: Mixture, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """PGD examples of each expert and of the mixture, on each expert and on the mixture.

    `transfer` bool [B,E+1,E+1]: whether the target (column) is right about the source's (row)
    example; the mixture comes last. `experts` bool [B,E]: each expert alone, without an attack.
    """
    sources: list[nn.Module] = [*model.experts, model]
    everyone = torch.arange(len(chunk.y), device=chunk.y.device)
    attack = PGD(eps=threat.eps, norm=threat.norm, steps=STEPS)
    rows, predictions = [], []
    for place, source in enumerate(sources):
        draw = Draw(*chunk.key, "transfer", place, total=len(chunk.y))
        guarded = Guarded(source, chunk.x, threat, chunk.witness, everyone)
        with eval_mode(source):
            x_adv = attack(guarded, chunk.x, chunk.y, draw=draw)
        assert_within(x_adv, chunk.x, threat)
        z, said = _all_say(model, x_adv, chunk)
        said = chunk.confirmed(said, x_adv, chunk.y)
        rows.append(torch.cat([z == chunk.y[:, None], (said == chunk.y)[:, None]], 1))
        predictions.append(said)
    with torch.no_grad():
        alone = classes(model.expert_logits(chunk.x)) == chunk.y[:, None]
    matrix = torch.stack(rows, 1)
    start = survivors(before, chunk.y)
    wrong = ~matrix[:, :-1, -1]  # what experts' examples do to the mixture
    by = torch.where(wrong.any(1), wrong.int().argmax(1), -1)
    said = torch.stack(predictions[:-1], 1).gather(1, by.clamp_min(0)[:, None])[:, 0]
    columns = verdict("transfer", start, start & wrong.any(1), said)
    return columns | {"transfer": matrix, "experts": alone}, []


def _all_say(model: Mixture, x: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Classes that each expert [B,E] and the mixture [B] give for the chunk's images, attacked."""
    with torch.no_grad():
        z = model.expert_logits(x)
        outputs = model.combine(model.log_gate_weights(x), z)
    said = classes(outputs)
    if chunk.witness is not None:
        chunk.witness.see(Odd.NON_FINITE, said == NONE)
        everyone = torch.arange(len(said), device=said.device)
        chunk.witness.left(Left(everyone, x, outputs))
    return classes(z), said


def saturation(model: Mixture, chunk: Chunk, before: Columns, threat: Threat) -> Given:
    """Where the input gradient comes from, how large the experts' logits are, and accuracy at
    other temperatures of the gate.

    `scale` [B,E]: largest minus smallest logit. `gradient.gate`, `gradient.experts` [B]: its
    2-norm with the other's cut. `temperature.clean`, `temperature.pgd` bool [B,F], of the F
    `TEMPERATURE_FACTORS`.
    """
    x = chunk.x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        log_w, z = model.log_gate_weights(x), model.expert_logits(x)
        norms = {}
        for name, outputs in (
            ("gate", model.combine(log_w, z.detach())),
            ("experts", model.combine(log_w.detach(), z)),
        ):
            loss = F.nll_loss(outputs, chunk.y, reduction="sum")
            if loss.requires_grad:
                (gradient,) = torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True)
            else:
                gradient = None
            norms[f"gradient.{name}"] = (
                x.new_zeros(len(chunk.y)) if gradient is None else gradient.flatten(1).norm(dim=1)
            ).detach()
    z, chunk = z.detach(), chunk.of_another()
    clean, robust = [], []
    for place, factor in enumerate(TEMPERATURE_FACTORS):
        other = copy.copy(model)
        other.temperature = model.temperature * factor
        with torch.no_grad():
            start = classes(other(chunk.x)) == chunk.y
        attacked = until_broken(
            ascending(other, chunk.y), chunk, start, "temperature", place, threat=threat
        )
        clean.append(start)
        robust.append(start & ~attacked.broken)
    return {
        "scale": z.amax(2) - z.amin(2),
        **norms,
        "temperature.clean": torch.stack(clean, 1),
        "temperature.pgd": torch.stack(robust, 1),
    }, []
