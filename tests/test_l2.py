"""Attacks and evaluation in ℓ2: by hand, and against torchattacks, foolbox and AutoAttack."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import foolbox
import pyarrow as pa
import pytest
import torch
import torchattacks
from pyautoattack import AutoAttack
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from fmoe import assembly, config
from fmoe.attacks import FGSM, PGD
from fmoe.attacks.threat import L2, Linf, unit
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.evaluation import Evaluation, evaluate, standard
from fmoe.evaluation.promotion import Evidence, lacks, not_better
from fmoe.numerics.draw import Draw, shard
from tests.conftest import SMALL
from tests.networks import learnt
from tests.test_attacks_against_libraries import accuracy, by_foolbox
from tests.test_promotion import REPORT

EPS = 0.5
IMAGES = 256
Batch = tuple[Tensor, Tensor]


def test_a_step_follows_the_gradient_itself() -> None:
    """On a linear model: eps along (-3, -4) / 5, not along (-1, -1)."""
    weight = torch.tensor([[0.0, 3.0], [0.0, 4.0]])
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([1])
    x_adv = FGSM(eps=0.1, norm="l2")(lambda images: images.flatten(1) @ weight, x, y)
    torch.testing.assert_close(x_adv.flatten(), torch.tensor([0.5 - 0.06, 0.5 - 0.08]))


def test_projection_by_hand() -> None:
    """On the sphere, and then into [0,1]; what is inside stays."""
    ball, x = L2(eps=0.5), torch.tensor([[[[0.9, 0.5]]]])
    torch.testing.assert_close(
        ball.project(torch.tensor([[[[1.5, 1.3]]]]), x), torch.tensor([[[[1.0, 0.9]]]])
    )
    inside = torch.tensor([[[[0.7, 0.6]]]])
    assert torch.equal(ball.project(inside, x), inside)


def test_directions_of_any_size() -> None:
    """Squares of 1e-30 are 0 in float32, and those of 1e30 infinite."""
    given = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    for size in (1.0, 1e-30, 1e30):
        torch.testing.assert_close(unit(size * given), given / 5)
    assert torch.equal(unit(0 * given), 0 * given)


def test_a_random_point_is_even_in_the_ball() -> None:
    """Of N draws in three dimensions t^3 N are within t eps, and no direction is preferred."""
    x = torch.full((20_000, 3, 1, 1), 0.5)
    moved = (L2(eps=EPS).random_point(x, Draw(0)) - x).flatten(1)
    lengths = moved.norm(dim=1)
    assert lengths.max() <= EPS * (1 + 1e-6)
    for share in (0.3, 0.5, 0.8):
        assert (lengths < share * EPS).float().mean().item() == pytest.approx(share**3, abs=0.01)
    directions = moved / lengths[:, None]
    assert directions.mean(0).abs().max() < 0.02
    covariance = directions.T @ directions / len(directions)
    torch.testing.assert_close(covariance, torch.eye(3) / 3, atol=0.01, rtol=0)


def test_workers_share_a_random_start() -> None:
    x = torch.full((6, 1, 8, 8), 0.5)
    ball = L2(eps=EPS)
    whole = ball.random_point(x, Draw(1, total=6))
    parts = [shard(6, rank, 2) for rank in range(2)]
    shares = [ball.random_point(x[rows], Draw(1, total=6, rows=rows)) for rows in parts]
    assert torch.equal(torch.cat(shares), whole)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("evaluate={norm: l2, eps: 1001}", "evaluate.eps: must be at most 1000 in l2"),
        ("joint.attack={kind: pgd, norm: l2, eps: [1, 2000]}", "at most 1000 in l2"),
        ("joint.attack={kind: pgd, eps: [0.1, 2]}", "joint.attack.eps: must be at most 1 in linf"),
        ("joint.attack={kind: nfgsm, norm: l2}", "nfgsm is for linf alone, not l2"),
    ],
)
def test_what_cannot_be(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.load("digits-whole", [path])


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    """Adversarially trained in l2."""
    attack = FGSM(eps=EPS, norm="l2")

    def perturb(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        return attack(model, x, y, draw=Draw(step))

    return learnt(digits, width=4, steps=80, perturb=perturb)


@pytest.fixture(scope="module")
def batch(digits: Data) -> Batch:
    return digits.test.pixels()[:IMAGES].contiguous(), digits.test.labels[:IMAGES]


@pytest.fixture(scope="module")
def exactly(net: nn.Module, batch: Batch) -> tuple[nn.Module, Batch]:
    """In float64: where the network is sure of an image the direction of its gradient is a matter
    of rounding, and CPUs differ in it."""
    x, y = batch
    return copy.deepcopy(net).double(), (x.double(), y)


def test_fgsm_equals_foolbox(exactly: tuple[nn.Module, Batch]) -> None:
    net, batch = exactly
    found = FGSM(eps=EPS, norm="l2")(net, *batch)
    expected = by_foolbox(foolbox.attacks.L2FastGradientAttack(), net, batch, EPS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_pgd_from_the_image_equals_foolbox(exactly: tuple[nn.Module, Batch], steps: int) -> None:
    net, batch = exactly
    attack = PGD(eps=EPS, step_size=EPS / 4, steps=steps, random_start=False, norm="l2")
    library = foolbox.attacks.L2PGD(abs_stepsize=EPS / 4, steps=steps, random_start=False)
    torch.testing.assert_close(
        attack(net, *batch), by_foolbox(library, net, batch, EPS), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_pgd_from_the_image_equals_torchattacks(
    exactly: tuple[nn.Module, Batch], steps: int
) -> None:
    net, batch = exactly
    attack = PGD(eps=EPS, step_size=EPS / 4, steps=steps, random_start=False, norm="l2")
    library = torchattacks.PGDL2(
        net, eps=EPS, alpha=EPS / 4, steps=steps, random_start=False, eps_for_division=1e-25
    )
    torch.testing.assert_close(attack(net, *batch), library(*batch), atol=1e-4, rtol=0)


def test_robust_accuracy_agrees_with_the_libraries(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    ours = PGD(eps=EPS, step_size=EPS / 4, steps=20, norm="l2")(net, x, y, draw=Draw(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = torchattacks.PGDL2(net, eps=EPS, alpha=EPS / 4, steps=20)(x, y)
        second = by_foolbox(foolbox.attacks.L2PGD(abs_stepsize=EPS / 4, steps=20), net, batch, EPS)
    found = accuracy(net, ours, y)
    assert 0.4 < found < 0.9
    assert accuracy(net, first, y) == pytest.approx(found, abs=0.015)
    assert accuracy(net, second, y) == pytest.approx(found, abs=0.015)


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    fit = standard._fit

    def fewer(library: AutoAttack, classes: int) -> None:
        fit(library, classes)
        library.square.n_queries = 50  # of 5,000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standard, "_fit", fewer)
        yield


@pytest.mark.parametrize("fast", [False, True])
def test_autoattack_is_the_library(net: nn.Module, digits: Data, quick: None, fast: bool) -> None:
    """Image by image; the quick parts are for boxes alone and not taken."""
    part = digits.test[:24]
    found = evaluate(
        net, part.images, part.labels, attacks=["autoattack"], norm="l2", eps=EPS, fast=fast, seed=7
    )
    with torch.no_grad():
        right = net(part.pixels()).argmax(1) == part.labels
    x, y = part.pixels()[right].contiguous(), part.labels[right]
    expected = torch.zeros(len(part), dtype=torch.bool)
    library = AutoAttack(net, norm="L2", eps=EPS, seed=7, device="cpu", version="standard")
    library.square.n_queries = 50
    assert type(library.square) is SquareAttack
    x_adv, _ = library.run_standard_evaluation(x, y, batch_size=len(y))
    with torch.no_grad():
        expected[right] = net(x_adv).argmax(1) == y
    differ = found.verdicts["autoattack"] != expected
    assert differ.sum() <= (2 if fast else 0)  # folded, sums are rounded in another way
    assert 0 < found.robust["autoattack"] < found.clean


def two_ways() -> Batch:
    """Classes that differ by 0.3 in one pixel and by 0.08 in 63: ℓ∞ of 0.12 is too much for the
    many, ℓ2 of 0.4 for the one."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    apart = torch.full((64,), 0.08)
    apart[0] = 0.3
    noise = 0.02 * torch.randn(400, 64, generator=draw)
    return (0.5 + (2 * y[:, None] - 1) * apart + noise).view(-1, 1, 8, 8).clamp(0, 1), y


def test_each_norm_is_its_own_defence() -> None:
    """Who was trained under a norm withstands in that one and falls in the other."""
    (x, y), given = two_ways(), {"linf": 0.12, "l2": 0.4}
    attacks = {norm: PGD(eps=eps, steps=10, norm=norm) for norm, eps in given.items()}
    robust = {}
    for norm, attack in attacks.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for step in range(150):
            x_adv = attack(model, x, y, draw=Draw(step))
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(x_adv), y))
            optimizer.step()
        for other, judge in attacks.items():
            robust[norm, other] = accuracy(model, judge(model, x, y, draw=Draw(-1)), y)
    assert robust["linf", "linf"] > 0.95 > 0.2 > robust["linf", "l2"]
    assert robust["l2", "l2"] > 0.95 > 0.2 > robust["l2", "linf"]


@pytest.fixture(scope="module")
def judged(digits: Data) -> Evaluation:
    model = assembly.seeded_mixture(config.load("digits-whole", SMALL))
    part = digits.test[:24]
    return evaluate(
        model, part.images, part.labels, norm="l2", eps=EPS,
        attacks=["fgsm", "pgd", "mixture", "sweeps"],
    )  # fmt: skip


def test_an_evaluation_under_it(judged: Evaluation) -> None:
    """Every stage asserts that what it made is within, by `distance`."""
    found = judged.to_json()
    assert (found["norm"], found["eps"]) == ("l2", EPS)
    assert {"fgsm", "pgd", "gate-only", "transfer"} <= found["robust"].keys()
    assert found["worst_case"] <= min(found["robust"].values())
    assert [size for size, _ in found["sweeps"]["eps"]][1:4] == [EPS / 8, EPS / 4, EPS / 2]


def evidence(version: int, **report: object) -> Evidence:
    table = pa.table({"label": [1] * 400, "prediction": [1] * 400})
    return Evidence(version, "abc", {**REPORT, "worst_case": 1.0, **report}, table)


def test_promotion_compares_no_two_norms() -> None:
    champion = evidence(1, norm="linf", eps=0.5)
    reason = str(not_better(evidence(2, norm="l2", eps=0.5), champion))
    assert "champion 1 was judged with other norm: evaluate it again" in reason
    report = {**REPORT, "norm": "linf", "recipe_norm": "l2"}
    assert lacks(report) == ["evaluated in norm linf, the recipe's is l2"]


def test_a_larger_norm_is_no_box() -> None:
    assert Linf.box
    assert not L2.box
    assert L2(eps=900).scaled(8).eps == 1000
