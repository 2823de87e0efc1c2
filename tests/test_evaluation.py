"""The protocol: intervals, verdicts, chunks, and AutoAttack as the library runs it."""

from __future__ import annotations

import json
from dataclasses import replace
from math import sqrt

import pytest
import torch
import torch.nn.functional as F
from pyautoattack import AutoAttack
from torch import Tensor, nn

from fmoe.attacks.threat import Linf
from fmoe.data import Data, Split
from fmoe.errors import UserError
from fmoe.evaluation import (
    PROTOCOL,
    STANDARD,
    Evaluation,
    Settings,
    StageResult,
    evaluate,
    judge,
    mcnemar,
    summarise,
    wilson,
)
from fmoe.evaluation.chunk import Chunk, assert_within, so_far
from fmoe.evaluation.iterated import ascending, until_broken
from fmoe.evaluation.protocol import stand_in
from fmoe.evaluation.standard import pgd
from fmoe.numerics.draw import Draw
from tests.networks import learnt

EPS = 0.1


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    """About 92% clean, 29% under PGD: 80 steps on clean images."""
    return learnt(digits, width=4, steps=80)


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
def test_wilson_ends_where_the_score_test_rejects(n: int) -> None:
    """Each end p has |successes / n - p| = z sqrt(p (1 - p) / n), or is 0 or 1."""
    for successes in {0, 1, n // 3, n // 2, n - 1, n}:
        low, high = wilson(successes, n)
        assert 0 <= low <= successes / n <= high <= 1
        for end in {low, high} - {0.0, 1.0}:
            score = (successes / n - end) / sqrt(end * (1 - end) / n)
            assert abs(score) == pytest.approx(1.959963984540054, abs=1e-6)
        assert (low == 0, high == 1) == (successes == 0, successes == n)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


# evaluate


def test_a_constant_classifier_has_its_class_share(part: Split) -> None:
    result = evaluate(Constant(), part.images, part.labels, attacks=["fgsm", "pgd"], eps=EPS)
    share = (part.labels == 3).double().mean().item()
    assert 0 < share < 1
    assert result.clean == result.worst_case == pytest.approx(share)
    assert result.robust == {"fgsm": pytest.approx(share), "pgd": pytest.approx(share)}
    assert torch.equal(result.right, part.labels == 3)


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
    for verdict in cheap.verdicts.values():
        assert verdict.shape == cheap.right.shape
        assert (verdict <= cheap.right).all()


def test_stronger_attacks_leave_fewer(cheap: Evaluation) -> None:
    robust = cheap.robust
    assert cheap.clean > robust["fgsm"] >= robust["pgd"] >= robust["pgd50"] >= cheap.worst_case
    assert robust["pgd50"] > 0


def test_the_worst_case_survives_every_attack(cheap: Evaluation) -> None:
    everything = torch.stack([cheap.right, *cheap.verdicts.values()])
    assert cheap.worst_case == everything.all(0).double().mean().item()


def test_the_worst_case_is_an_intersection_and_no_minimum() -> None:
    # clean 3/4; each attack alone leaves 1/2, but not the same images: together 1/4
    labels = torch.tensor([1, 1, 1, 1])
    columns = {
        "prediction.clean": torch.tensor([1, 1, 1, 0]),
        "broken.fgsm": torch.tensor([False, False, True, True]),
        "broken.pgd": torch.tensor([True, False, False, True]),
    }
    result = Evaluation(Settings(("fgsm", "pgd"), Linf(eps=EPS)), labels, columns)
    assert (result.clean, result.worst_case) == (0.75, 0.25)
    assert result.robust == {"fgsm": 0.5, "pgd": 0.5}


def test_same_seed_same_verdicts(net: nn.Module, part: Split) -> None:
    before = torch.get_rng_state()
    first, second = (
        evaluate(net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=0.06, seed=1)
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.columns.keys() == second.columns.keys()
    assert all(torch.equal(found, second.columns[name]) for name, found in first.columns.items())


def test_the_seed_moves_the_random_starts(net: nn.Module, part: Split) -> None:
    starts = [Draw(seed, 0, "pgd").noise(part.pixels()) for seed in (0, 1)]
    assert not torch.equal(*starts)
    found = [
        evaluate(net, part.images, part.labels, attacks=["pgd"], eps=0.06, seed=seed).robust["pgd"]
        for seed in (0, 1)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.1)  # and the figure hardly at all


def test_chunks_may_be_judged_anywhere_in_any_order(net: nn.Module, part: Split) -> None:
    settings = Settings(("fgsm", "pgd"), Linf(eps=0.06), batch_size=16)
    starts = range(0, len(part), 16)
    judged: dict[int, dict[str, StageResult]] = {}
    for start in reversed(starts):
        found = judged[start] = {}
        for name in ("clean", "fgsm", "pgd"):
            part_ = part[start : start + 16]
            found[name] = judge(net, part_, start, name, so_far(found), settings)
    apart = summarise([judged[start] for start in starts], part.labels, settings, {}, 0.0)
    at_once = evaluate(
        net, part.images, part.labels, attacks=["fgsm", "pgd"], eps=0.06, batch_size=16
    )
    assert at_once.images == 40
    for name, column in at_once.columns.items():
        assert torch.equal(apart.columns[name], column)
    assert apart.worst_case == at_once.worst_case


def test_chunks_have_draws_of_their_own() -> None:
    seen: list[Tensor] = []

    class Recorder(Constant):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            return super().forward(x)

    images, labels = torch.full((2, 1, 8, 8), 128, dtype=torch.uint8), torch.tensor([3, 3])
    evaluate(Recorder(), images, labels, attacks=["pgd"], eps=EPS, batch_size=1)
    half = len(seen) // 2
    first, second = seen[half - 1], seen[-1]  # of each chunk the last iterate
    assert not torch.equal(first, second)


def test_leaving_an_image_out_changes_no_others_verdict(net: nn.Module, part: Split) -> None:
    chunk = Chunk(part.pixels(), part.labels, (0, 0))
    with torch.no_grad():
        said = net(chunk.x).argmax(1)
    fewer = said.clone()
    fewer[::2] = (chunk.y[::2] + 1) % 10  # as if they were wrong
    all_of_them, _ = pgd(net, chunk, {"prediction.clean": said}, Linf(eps=0.06))
    some_of_them, _ = pgd(net, chunk, {"prediction.clean": fewer}, Linf(eps=0.06))
    some, every = some_of_them["broken.pgd"], all_of_them["broken.pgd"]
    assert torch.equal(some[1::2], every[1::2])
    assert some[::2].all()
    assert not some_of_them["attacked.pgd"][::2].any()


def test_an_image_leaves_when_it_breaks_and_others_go_on(net: nn.Module, part: Split) -> None:
    """The same verdicts as 20 steps on all images, any iterate counting."""
    chunk, seen = Chunk(part.pixels(), part.labels, (0, 0)), []
    white_box = ascending(net, chunk.y)

    def counting(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(x))
        return white_box(x, rows)

    everything = torch.ones(len(part), dtype=torch.bool)
    found = until_broken(counting, chunk, everything, "pgd", threat=Linf(eps=0.06))
    x = chunk.x + 0.06 * Draw(0, 0, "pgd", total=len(part)).noise(chunk.x)
    broken_at = torch.full((len(part),), -1)
    for step in range(21):
        x = x.clamp(chunk.x - 0.06, chunk.x + 0.06).clamp(0, 1).detach().requires_grad_(True)
        outputs = net(x)
        wrong = outputs.argmax(1) != chunk.y
        broken_at[wrong & (broken_at < 0)] = step
        loss = F.cross_entropy(outputs, chunk.y, reduction="sum")
        x = x + 0.015 * torch.autograd.grad(loss, x)[0].sign()
    assert (found.step == broken_at).double().mean() > 0.9  # batches of other sizes round otherwise
    assert ((found.step >= 0) == (broken_at >= 0)).double().mean() > 0.95
    assert seen == sorted(seen, reverse=True)
    assert 0 < seen[-1] < seen[0] == len(part)


def test_nothing_right_nothing_to_attack(part: Split) -> None:
    labels = torch.full_like(part.labels, 5)
    result = evaluate(Constant(), part.images, labels, attacks=STANDARD)
    assert result.clean == result.worst_case == 0
    assert result.raised == []


def test_judges_in_eval_mode_and_leaves_the_weights_alone(net: nn.Module, part: Split) -> None:
    state = {name: value.clone() for name, value in net.state_dict().items()}
    expected = evaluate(net, part.images, part.labels, attacks=["fgsm"], eps=EPS).columns
    found = evaluate(net.train(), part.images, part.labels, attacks=["fgsm"], eps=EPS).columns
    assert all(torch.equal(column, expected[name]) for name, column in found.items())
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
    assert set(found["attack_seconds"]) == {"clean", "fgsm", "pgd", "pgd50"}
    expected = {"images": 40, "eps": 0.06, "norm": "linf", "seed": 0, "protocol": PROTOCOL}
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize("attacks", [["apgd"], ["fgsm", "PGD"]])
def test_refuses_an_unknown_attack(part: Split, attacks: list[str]) -> None:
    with pytest.raises(UserError, match=r"unknown attack .*fgsm, pgd, pgd50, autoattack"):
        evaluate(Constant(), part.images, part.labels, attacks=attacks)


# guards


@pytest.mark.parametrize(("shift", "message"), [(2 * EPS, "away, eps is 0.1"), (-EPS, "leaves")])
def test_a_cheating_attack_is_caught(part: Split, shift: float, message: str) -> None:
    x = part.pixels()
    with pytest.raises(AssertionError, match=message):
        assert_within(x + shift, x, Linf(eps=EPS))


def test_rounding_is_within() -> None:
    x = torch.full((1, 1, 2, 2), 0.5)
    assert_within(x + EPS + 5e-7, x, Linf(eps=EPS))
    with pytest.raises(AssertionError, match="away"):
        assert_within(x + EPS + 5e-6, x, Linf(eps=EPS))


# autoattack


def test_autoattack_is_the_library_on_the_images_that_were_right(digits: Data, part: Split) -> None:
    model, eps, seed = LinearDigits(digits), 0.15, 3  # linear, for Square asks it 5,000 times
    images, labels = part.images[:8], part.labels[:8].clone()
    labels[0] = (labels[0] + 1) % 10  # one that is wrong before any attack
    result = evaluate(model, images, labels, attacks=["autoattack"], eps=eps, seed=seed)
    x = Split(images, labels).pixels().contiguous()
    with torch.random.fork_rng(devices=[]):
        right = model(x).argmax(1) == labels
        library = AutoAttack(model, eps=eps, seed=seed, version="standard")
        x_adv, _ = library.run_standard_evaluation(x[right], labels[right], batch_size=8)
    expected = right.clone()
    expected[right] = model(x_adv).argmax(1) == labels[right]
    assert torch.equal(result.verdicts["autoattack"], expected)
    assert 0 < result.robust["autoattack"] < result.clean < 1  # else this shows little


def test_autoattacks_warnings_become_flags(digits: Data, part: Split) -> None:
    few = part[:16]  # in chunks of 4, the flag of each is one flag of all
    model = LinearDigits(digits, probabilities=True)
    result = evaluate(model, few.images, few.labels, attacks=["autoattack"], eps=0.6, batch_size=4)
    flags = [flag for flag in result.flags if "probability distribution" in flag]
    assert len(flags) == 1
    assert flags[0].startswith("autoattack: ")
    assert result.to_json()["flags"] == result.flags


def test_logits_raise_no_flag(digits: Data, part: Split) -> None:
    few, model = part[:8], LinearDigits(digits)
    result = evaluate(model, few.images, few.labels, attacks=["autoattack"], eps=0.6)
    assert result.flags == []
    assert result.robust["autoattack"] == 0


def test_mcnemar_by_hand() -> None:
    a = torch.tensor([True] * 6 + [False] * 2 + [True, False])
    b = torch.tensor([False] * 6 + [True] * 2 + [True, False])
    # 6 against 2 of 8 differing images: 2 * (1 + 8 + 28) / 256
    assert mcnemar(a, b) == pytest.approx(2 * (1 + 8 + 28) / 256)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(a, a) == 1.0
    assert mcnemar(torch.ones(20).bool(), torch.zeros(20).bool()) == pytest.approx(2 / 2**20)


def test_fast_attacks_the_model_where_the_copy_is_another_function(part: Split) -> None:
    shared = nn.Conv2d(1, 1, 3, padding=1)
    blocks = [nn.Sequential(shared, nn.BatchNorm2d(1)) for _ in range(2)]
    nn.init.constant_(blocks[1][1].weight, 3.0)  # type: ignore[arg-type]
    odd = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64, 10)).eval()
    assert stand_in(odd, part) == (odd, None)
    plain = nn.Sequential(blocks[0], nn.Flatten(), nn.Linear(64, 10)).eval()
    attacked, confirm = stand_in(plain, part)
    assert attacked is not plain
    assert confirm is plain


def test_fast_gives_the_plain_verdicts(net: nn.Module, part: Split) -> None:
    plain = evaluate(net, part.images, part.labels, attacks=["pgd", "pgd50"], eps=EPS / 2)
    fast = evaluate(net, part.images, part.labels, attacks=["pgd", "pgd50"], eps=EPS / 2, fast=True)
    for name in ("broken.pgd", "broken.pgd50"):
        assert (plain.columns[name] == fast.columns[name]).double().mean() >= 0.95
    assert fast.to_json()["fast"]
    assert not plain.to_json()["fast"]


def test_what_the_model_itself_withstands_is_not_broken(net: nn.Module, part: Split) -> None:
    """Whatever the copy says that the attack ran on."""
    chunk = Chunk(part.pixels(), part.labels, (0, 0))
    start = torch.ones(len(part), dtype=torch.bool)
    asked = []

    def steadfast(x: Tensor) -> Tensor:
        asked.append(len(x))
        return F.one_hot(torch.full((len(x),), 3), 10).float()

    threes = replace(chunk, confirm=steadfast)
    found = until_broken(ascending(net, chunk.y), threes, start, "pgd", threat=Linf(eps=EPS))
    assert asked
    assert not found.broken[chunk.y == 3].any()


def test_parameters_get_no_gradients(digits: Data, part: Split) -> None:
    """FAB calls backward: it would fill every parameter's .grad, at a third of its time."""
    model = LinearDigits(digits)  # as the library asks it for as much
    found = evaluate(model, part.images[:4], part.labels[:4], attacks=["autoattack"], eps=EPS / 4)
    assert found.robust["autoattack"] > 0, "some image is left to FAB and to all after it"
    assert model.means.grad is None
    assert model.means.requires_grad
