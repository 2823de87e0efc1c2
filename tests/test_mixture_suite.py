"""The mixture's attacks on mixtures of one pixel, whose answers are known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fmoe.attacks import PGD
from fmoe.attacks.threat import Linf
from fmoe.evaluation import Settings, evaluate, plan
from fmoe.evaluation.chunk import Chunk, Columns
from fmoe.evaluation.figures import entropy, mixture
from fmoe.evaluation.iterated import Pass, ascending, until_broken
from fmoe.evaluation.mixture_suite import (
    TEMPERATURE_FACTORS,
    frozen_gate,
    gate_only,
    mixings,
    reweighted,
    saturation,
    toward,
    transfer,
)
from fmoe.models.mixture import Mixture
from fmoe.numerics.draw import Draw
from tests.test_mixture import Fixed

EPS = 0.1
THREAT = Linf(eps=EPS)


class Pixel(nn.Module):
    """Logits (s, -s) with s = slope * (x - middle), x the image's only pixel."""

    def __init__(self, slope: float, middle: float = 0.5):
        super().__init__()
        self.slope, self.middle = nn.Parameter(torch.tensor(slope)), middle

    def forward(self, x: Tensor) -> Tensor:
        s = self.slope * (x.flatten(1) - self.middle)
        return torch.cat([s, -s], 1)


def chunk(*pixels: float, label: int = 0) -> tuple[Chunk, Columns]:
    """Images that are right; the key's draws are such that no random start breaks them."""
    x = torch.tensor(pixels).view(-1, 1, 1, 1)
    y = torch.full((len(pixels),), label)
    return Chunk(x, y, (3, 0)), {"prediction.clean": y.clone()}


STEERED = Mixture([Fixed(4, 0), Fixed(0, 4)], Pixel(20.0))
"""Experts that never change; the gate takes the first one above 0.5, the second one below."""


def test_the_gate_alone_can_be_the_soft_spot() -> None:
    given, before = chunk(0.55, 0.59, 0.9)
    found, _ = gate_only(STEERED, given, before, THREAT)
    assert found["broken.gate-only"].tolist() == [True, True, False]
    assert found["prediction.gate-only"].tolist() == [1, 1, 0]


def test_without_routing_nothing_moves_experts_that_never_change() -> None:
    given, before = chunk(0.59, 0.59, 0.9)
    found, _ = frozen_gate(STEERED, given, before, THREAT)
    assert found["frozen"].tolist() == [True, True, True]
    assert not found["broken.frozen-gate"].any()


def test_what_an_earlier_attack_broke_is_not_attacked_again() -> None:
    given, before = chunk(0.55, 0.55)
    before["broken.pgd"] = torch.tensor([True, False])
    found, _ = gate_only(STEERED, given, before, THREAT)
    assert found["attacked.gate-only"].tolist() == [False, True]
    assert found["broken.gate-only"].tolist() == [True, True]


def test_a_saturated_softmax_hides_nothing_from_the_soft_surrogate() -> None:
    """Logits of a thousand: the loss is 0 and flat, and the white-box gradient exactly 0."""
    model = Mixture([Pixel(1e5), Pixel(1e5)], Fixed(0, 0))
    given, before = chunk(0.59, 0.59)
    everything = torch.ones(2, dtype=torch.bool)
    white_box = until_broken(ascending(model, given.y), given, everything, "pgd", threat=THREAT)
    assert not white_box.broken.any()
    found, _ = mixings(model, given, before, THREAT)
    assert found["broken.surrogate"].all()
    assert (found["by.surrogate"] == 3).all()  # logits, two uniform ones, then the soft one


def test_a_member_that_dominates_the_gradient_hides_another() -> None:
    """The first expert's gradient points up and is the larger one; the mixture breaks below.

    Margins at 0.5 + d: 1 - 20 d and 4 + 80 d, weights 0.4 and 0.6. Up, the second expert is ever
    surer: 0.4 * 0.27 + 0.6 > 0.5. At d = -0.1 it is wrong: 0.4 * 0.95 + 0.6 * 0.02 < 0.5.
    """
    model = Mixture([Pixel(-10.0, 0.55), Pixel(40.0, 0.45)], Fixed(math.log(0.4), math.log(0.6)))
    given, _ = chunk(0.5)
    everything = torch.ones(1, dtype=torch.bool)

    def broken(run: Pass) -> bool:
        found = until_broken(run, given, everything, threat=THREAT, random_start=False)
        return bool(found.broken.item())

    assert not broken(ascending(model, given.y))
    assert not broken(toward(model, given.y, 0))
    assert broken(toward(model, given.y, 1))


def test_an_expert_that_is_sure_is_reached_all_the_same() -> None:
    """Margins 1 - 20 d and 15 + 170 d: the second expert's share of the mixture's gradient is
    nothing, and half of the weight would make it half of nothing. At d = -0.1 the mixture breaks:
    0.4 * 0.95 + 0.6 * 0.12 = 0.45."""
    experts = [Pixel(-10.0, 0.55), Pixel(85.0, 0.5 - 15 / 170)]
    model = Mixture(experts, Fixed(math.log(0.4), math.log(0.6)))
    given, _ = chunk(0.5)
    found = [
        until_broken(run, given, torch.ones(1, dtype=torch.bool), threat=THREAT, random_start=False)
        for run in (ascending(model, given.y), *(toward(model, given.y, e) for e in (0, 1)))
    ]
    assert [bool(one.broken.item()) for one in found] == [False, False, True]


def test_an_expert_without_weight_costs_no_gradient() -> None:
    """exp(-200) is 0 in float32."""
    model = Mixture([Pixel(10.0, 0.45), Pixel(10.0)], Fixed(0.0, -200.0))
    given, _ = chunk(0.5)
    everything = torch.ones(1, dtype=torch.bool)
    found = until_broken(
        toward(model, given.y, 0), given, everything, threat=THREAT, random_start=False
    )
    assert found.broken.item()


def test_reweighting_has_a_restart_for_each_expert() -> None:
    model = Mixture([Pixel(-10.0, 0.55), Pixel(40.0, 0.45)], Fixed(math.log(0.4), math.log(0.6)))
    given, before = chunk(*[0.5] * 12, 0.9)
    found, _ = reweighted(model, given, before, THREAT)
    assert found["broken.reweighted"][:12].sum() >= 10  # a start above goes up, twice
    assert not found["broken.reweighted"][12]
    assert {0, 1} <= set(found["by.reweighted"].tolist())


def test_transfer_matrix_is_that_of_pgd_on_each() -> None:
    """Expert 0 is right above 0.5, expert 1 above 0.2: only examples of their own move them."""
    model = Mixture([Pixel(30.0), Pixel(30.0, 0.2)], Fixed(0, 0))
    given, before = chunk(0.55, 0.28, 0.9)
    found, _ = transfer(model, given, before, THREAT)
    assert found["experts"].tolist() == [[True, True], [False, True], [True, True]]
    for place, source in enumerate([*model.experts, model]):
        draw = Draw(3, 0, "transfer", place, total=3)
        x_adv = PGD(eps=EPS, step_size=EPS / 4, steps=20)(source, given.x, given.y, draw=draw)
        for other, target in enumerate([*model.experts, model]):
            said = target(x_adv).argmax(1) == given.y
            assert torch.equal(found["transfer"][:, place, other], said)
    assert not found["transfer"][0, 0, 0]
    assert found["transfer"][0, 0, 1]


def test_saturation_tells_gate_from_experts() -> None:
    given, before = chunk(0.55, 0.9)
    found, _ = saturation(STEERED, given, before, THREAT)
    assert (found["gradient.gate"] > 0).all()
    assert (found["gradient.experts"] == 0).all()
    assert torch.equal(found["scale"], torch.full((2, 2), 4.0))
    assert found["temperature.clean"].all()
    # at any temperature the gate prefers the first expert above 0.5 only
    assert found["temperature.pgd"].tolist() == [
        [False] * len(TEMPERATURE_FACTORS),
        [True] * len(TEMPERATURE_FACTORS),
    ]


def test_entropy_by_hand() -> None:
    assert entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(0.5)
    assert entropy(torch.tensor([[0.25] * 4])) == pytest.approx(1.0)


def test_another_model_skips_the_suite_and_says_so() -> None:
    images = torch.full((3, 1, 1, 1), 150, dtype=torch.uint8)
    labels = torch.zeros(3, dtype=torch.int64)
    found = evaluate(Pixel(20.0), images, labels, attacks=["pgd", "mixture"], eps=EPS)
    assert set(found.skipped.values()) == {"not a mixture of experts"}
    assert "gate-only" in found.skipped
    assert list(found.robust) == ["pgd"]
    one = Mixture([Pixel(20.0)], Fixed(0))
    assert plan(one, Settings(("transfer",), Linf(eps=EPS)))[1] == {"transfer": "one expert"}


def test_the_suite_counts_in_the_worst_case() -> None:
    images = torch.tensor([140, 230], dtype=torch.uint8).view(2, 1, 1, 1)
    labels = torch.zeros(2, dtype=torch.int64)
    found = evaluate(STEERED, images, labels, attacks=["gate-only"], eps=EPS)
    assert (found.clean, found.robust["gate-only"], found.worst_case) == (1.0, 0.5, 0.5)


def test_experts_that_beat_their_mixture_are_named() -> None:
    """The gate gives nearly all to the worse expert."""
    model = Mixture([Pixel(30.0, 0.5), Pixel(30.0, 0.2)], Fixed(9, 0))
    images = torch.tensor([140, 145, 230], dtype=torch.uint8).view(3, 1, 1, 1)
    labels = torch.zeros(3, dtype=torch.int64)
    found = evaluate(model, images, labels, attacks=["pgd", "transfer"], eps=EPS)
    told = mixture(found.columns, labels, ("bad", "good"))
    assert told["better_alone"] == ["good"]
    assert any("expert 1 alone" in note for note in found.notes)
