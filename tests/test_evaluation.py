"""The protocol: intervals, verdicts, chunks, and AutoAttack as the library runs it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from scipy.stats import binomtest
from torch import Tensor, nn

from fmoe.attacks import FGSM, ModelFn
from fmoe.data import Data, Split
from fmoe.draw import Draw
from fmoe.errors import UserError
from fmoe.evaluation import (
    ATTACKS,
    PROTOCOL,
    Evaluation,
    Settings,
    Verdicts,
    evaluate,
    judge_chunk,
    mcnemar,
    summarise,
    wilson,
)
from fmoe.evaluation.standard import Chunk, assert_within, survivors
from fmoe.experts import ResNet18

EPS = 0.1


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    """About 92% clean, 29% under PGD: 80 steps on clean images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet18(mean=digits.info.mean, std=digits.info.std, classes=10, width=4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        x, y = digits.train.pixels(), digits.train.labels
        for _ in range(80):
            rows = torch.randint(len(y), (64,))
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(x[rows]), y[rows]))
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def part(digits: Data) -> Split:
    return digits.test[:40]


class Constant(nn.Module):
    """Says 3, whatever the image."""

    def forward(self, x: Tensor) -> Tensor:
        says_3 = F.one_hot(torch.tensor(3), 10).float()
        return says_3 + 0 * x.flatten(1).sum(1, keepdim=True)


class LinearDigits(nn.Module):
    """Logits by one linear layer from the class means; `probabilities`: their softmax."""

    def __init__(self, digits: Data, *, probabilities: bool = False):
        super().__init__()
        x, y = digits.train.pixels().flatten(1), digits.train.labels
        self.means = nn.Parameter(torch.stack([x[y == k].mean(0) for k in range(10)]))
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1) @ self.means.T - self.means.square().sum(1) / 2
        return logits.softmax(1) if self.probabilities else logits


# intervals


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        # z = 1.96, z^2 = 3.8415. 8/10: centre (0.8 + 0.19207) / 1.38415 = 0.716740,
        # half 1.96 / 1.38415 * sqrt(0.016 + 0.0096036) = 0.226578
        (8, 10, (0.4901625, 0.9433178)),
        (0, 10, (0.0, 0.2775328)),  # the upper end is z^2 / (n + z^2) = 3.8415 / 13.8415
        (10, 10, (0.7224672, 1.0)),
        (500, 1000, (0.4690696, 0.5309304)),
    ],
)
def test_wilson_by_hand(successes: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("n", [1, 7, 100, 10_000])
def test_wilson_is_scipys(n: int) -> None:
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        interval = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


# evaluate


def test_a_constant_classifier_has_its_class_share(part: Split) -> None:
    result = evaluate(Constant(), part.images, part.labels, attacks=["fgsm", "pgd"], eps=EPS)
    share = (part.labels == 3).double().mean().item()
    assert 0 < share < 1
    assert result.clean == result.worst_case == pytest.approx(share)
    assert result.robust == {"fgsm": pytest.approx(share), "pgd": pytest.approx(share)}
    assert torch.equal(result.verdicts.clean, part.labels == 3)


def test_without_attacks_worst_case_is_clean(net: nn.Module, part: Split) -> None:
    result = evaluate(net, part.images, part.labels, attacks=[])
    assert result.robust == {}
    assert result.worst_case == result.clean > 0.8


def test_eps_0_breaks_nothing(net: nn.Module, part: Split) -> None:
    result = evaluate(net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=0)
    assert result.worst_case == result.clean


def test_a_huge_eps_breaks_everything(net: nn.Module, part: Split) -> None:
    result = evaluate(net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=0.6)
    assert result.worst_case < 0.1 < result.clean


@pytest.fixture(scope="module")
def cheap(net: nn.Module, part: Split) -> Evaluation:
    attacks = ["fgsm", "pgd", "pgd50"]
    return evaluate(net, part.images, part.labels, attacks=attacks, eps=0.06)


def test_only_images_that_were_right_survive(cheap: Evaluation) -> None:
    for verdict in cheap.verdicts.robust.values():
        assert verdict.shape == cheap.verdicts.clean.shape
        assert (verdict <= cheap.verdicts.clean).all()


def test_stronger_attacks_leave_fewer(cheap: Evaluation) -> None:
    robust = cheap.robust
    assert cheap.clean > robust["fgsm"] >= robust["pgd"] >= robust["pgd50"] >= cheap.worst_case
    assert robust["pgd50"] > 0


def test_the_worst_case_survives_every_attack(cheap: Evaluation) -> None:
    everything = torch.stack([cheap.verdicts.clean, *cheap.verdicts.robust.values()])
    assert cheap.worst_case == everything.all(0).double().mean().item()


def test_the_worst_case_is_an_intersection_and_no_minimum() -> None:
    # clean 3/4; each attack alone leaves 1/2, but not the same images: together 1/4
    verdicts = Verdicts(
        torch.tensor([True, True, True, False]),
        {
            "fgsm": torch.tensor([True, True, False, False]),
            "pgd": torch.tensor([False, True, True, False]),
        },
        [],
        {"fgsm": 1.0, "pgd": 2.0},
    )
    result = Evaluation(verdicts, Settings(("fgsm", "pgd"), EPS), 3.0)
    assert (result.clean, result.worst_case) == (0.75, 0.25)
    assert result.robust == {"fgsm": 0.5, "pgd": 0.5}
    assert torch.equal(verdicts.clean, torch.tensor([True, True, True, False]))  # not changed


def test_same_seed_same_verdicts(net: nn.Module, part: Split) -> None:
    before = torch.get_rng_state()
    first, second = (
        evaluate(net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=0.06, seed=1).verdicts
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.clean, second.clean)
    assert torch.equal(first.robust["fgsm"], second.robust["fgsm"])
    assert torch.equal(first.robust["pgd"], second.robust["pgd"])


def test_the_seed_moves_the_random_starts(net: nn.Module, part: Split) -> None:
    starts = [Draw(seed, 0, "pgd").noise(part.pixels()) for seed in (0, 1)]
    assert not torch.equal(*starts)
    found = [
        evaluate(net, part.images, part.labels, attacks=["pgd"], eps=0.06, seed=seed).robust["pgd"]
        for seed in (0, 1)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.1)  # and the figure hardly at all


def test_chunks_may_be_judged_anywhere_in_any_order(net: nn.Module, part: Split) -> None:
    settings = Settings(("fgsm", "pgd"), 0.06, batch_size=16)
    starts = range(0, len(part), 16)
    judged = {
        start: judge_chunk(net, part[start : start + 16], start, settings)
        for start in reversed(starts)
    }
    apart = summarise([judged[start] for start in starts], settings, 0.0)
    at_once = evaluate(
        net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=0.06, batch_size=16
    )
    assert at_once.images == 40
    assert torch.equal(apart.verdicts.clean, at_once.verdicts.clean)
    for name in ("fgsm", "pgd"):
        assert torch.equal(apart.verdicts.robust[name], at_once.verdicts.robust[name])
    assert apart.worst_case == at_once.worst_case


def test_chunks_have_draws_of_their_own() -> None:
    seen: list[Tensor] = []

    class Recorder(Constant):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    images, labels = torch.full((2, 1, 8, 8), 128, dtype=torch.uint8), torch.tensor([3, 3])
    evaluate(Recorder(), images, labels, attacks=["pgd"], eps=EPS, batch_size=1)
    first, second = seen[1], seen[1 + len(seen) // 2]  # [0] is the clean pass
    assert not torch.equal(first, second)


def test_leaving_an_image_out_changes_no_others_verdict(net: nn.Module, part: Split) -> None:
    chunk = Chunk(part.pixels(), part.labels, (0, 0))
    with torch.no_grad():
        clean = net(chunk.x).argmax(1) == chunk.y
    fewer = clean.clone()
    fewer[::2] = False
    all_of_them, _ = ATTACKS["pgd"](net, chunk, clean, 0.06)
    some_of_them, _ = ATTACKS["pgd"](net, chunk, fewer, 0.06)
    assert torch.equal(some_of_them[1::2], all_of_them[1::2])
    assert not some_of_them[::2].any()


def test_nothing_right_nothing_to_attack(part: Split) -> None:
    labels = torch.full_like(part.labels, 5)
    result = evaluate(Constant(), part.images, labels, attacks=list(ATTACKS))
    assert result.clean == result.worst_case == 0
    assert result.verdicts.flags == []


def test_judges_in_eval_mode_and_leaves_the_weights_alone(net: nn.Module, part: Split) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    expected = evaluate(net, part.images, part.labels, attacks=["fgsm"], eps=EPS).verdicts
    found = evaluate(net.train(), part.images, part.labels, attacks=["fgsm"], eps=EPS).verdicts
    assert torch.equal(found.clean, expected.clean)
    assert torch.equal(found.robust["fgsm"], expected.robust["fgsm"])
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    net.eval()


def test_progress_counts_the_images(part: Split) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        Constant(),
        part.images,
        part.labels,
        attacks=[],
        batch_size=16,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(16, 40), (32, 40), (40, 40)]


def test_json_holds_the_figures_and_how_they_came(cheap: Evaluation) -> None:
    found = json.loads(json.dumps(cheap.to_json()))
    assert found["clean"] == cheap.clean
    assert found["robust"] == cheap.robust
    assert found["worst_case"] == cheap.worst_case
    assert set(found["interval95"]) == {"clean", "fgsm", "pgd", "pgd50", "worst_case"}
    assert found["interval95"]["clean"] == list(wilson(round(40 * cheap.clean), 40))
    assert set(found["attack_seconds"]) == {"fgsm", "pgd", "pgd50"}
    expected = {"images": 40, "eps": 0.06, "norm": "linf", "seed": 0, "protocol": PROTOCOL}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("attacks", [["apgd"], ["fgsm", "PGD"]])
def test_refuses_an_unknown_attack(part: Split, attacks: list[str]) -> None:
    with pytest.raises(UserError, match=r"unknown attack .*fgsm, pgd, pgd50, autoattack"):
        evaluate(Constant(), part.images, part.labels, attacks=attacks)


# guards


class Cheat(FGSM):
    """Goes twice as far as it says."""

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        return (x + 2 * EPS).clamp(max=1)


class Escape(FGSM):
    """Leaves the unit cube."""

    def perturb(self, model: ModelFn, x: Tensor, y: Tensor, draw: Draw) -> Tensor:
        return x - EPS


@pytest.mark.parametrize(
    ("attack", "message"), [(Cheat(eps=EPS), "away, eps is 0.1"), (Escape(eps=EPS), "leaves")]
)
def test_a_cheating_attack_is_caught(part: Split, attack: FGSM, message: str) -> None:
    chunk = Chunk(part.pixels(), part.labels, (0, 0))
    with pytest.raises(AssertionError, match=message):
        survivors(Constant(), chunk, torch.ones(len(part), dtype=torch.bool), attack, "cheat")


def test_a_cheating_attack_is_caught_by_evaluate(
    part: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cheat(*args: Any) -> tuple[Tensor, list[str]]:
        model, chunk, alive, _ = args
        return survivors(model, chunk, alive, Cheat(eps=EPS), "cheat"), []

    monkeypatch.setitem(ATTACKS, "cheat", cheat)
    with pytest.raises(AssertionError, match="away"):
        evaluate(Constant(), part.images, part.labels, attacks=["cheat"], eps=EPS)


def test_rounding_is_within() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    assert_within(x + EPS + 5e-7, x, EPS)
    with pytest.raises(AssertionError, match="away"):
        assert_within(x + EPS + 5e-6, x, EPS)


# autoattack


def test_autoattack_is_the_library_on_the_images_that_were_right(digits: Data, part: Split) -> None:
    model, eps, seed = LinearDigits(digits), 0.15, 3  # linear, for Square asks it 5,000 times
    images, labels = part.images[:8], part.labels[:8].clone()
    labels[0] = (labels[0] + 1) % 10  # one that is wrong before any attack
    result = evaluate(model, images, labels, attacks=["pgd", "autoattack"], eps=eps, seed=seed)
    x = Split(images, labels).pixels().contiguous()
    with torch.random.fork_rng(devices=[]):
        right = model(x).argmax(1) == labels
        library = AutoAttack(model, eps=eps, seed=seed, version="standard")
        x_adv, _ = library.run_standard_evaluation(x[right], labels[right], batch_size=8)
    expected = right.clone()
    expected[right] = model(x_adv).argmax(1) == labels[right]
    assert torch.equal(result.verdicts.robust["autoattack"], expected)
    assert result.robust["autoattack"] <= result.robust["pgd"]
    assert 0 < result.robust["autoattack"] < result.clean < 1  # else this shows little


def test_autoattacks_warnings_become_flags(digits: Data, part: Split) -> None:
    few = part[:16]  # in chunks of 4, the flag of each is one flag of all
    model = LinearDigits(digits, probabilities=True)
    result = evaluate(model, few.images, few.labels, attacks=["autoattack"], eps=0.6, batch_size=4)
    flags = [flag for flag in result.verdicts.flags if "probability distribution" in flag]
    assert len(flags) == 1
    assert flags[0].startswith("autoattack: ")
    assert result.to_json()["flags"] == result.verdicts.flags


def test_logits_raise_no_flag(digits: Data, part: Split) -> None:
    few, model = part[:8], LinearDigits(digits)
    result = evaluate(model, few.images, few.labels, attacks=["autoattack"], eps=0.6)
    assert result.verdicts.flags == []
    assert result.robust["autoattack"] == 0


def test_mcnemar_by_hand() -> None:
    a = torch.tensor([True] * 6 + [False] * 2 + [True, False])
    b = torch.tensor([False] * 6 + [True] * 2 + [True, False])
    # 6 against 2 of 8 differing images: 2 * (1 + 8 + 28) / 256
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(a, a) == 1.0
    assert mcnemar(torch.ones(20).bool(), torch.zeros(20).bool()) == pytest.approx(2 / 2**20)
