"""The attacks against torchattacks' and foolbox's, on a small network trained on digits."""

from __future__ import annotations

import foolbox
import pytest
import torch
import torchattacks
from torch import Tensor, nn

from fmoe.attacks import FGSM, PGD
from fmoe.data import Data
from fmoe.numerics.draw import Draw
from tests.networks import learnt

EPS = 0.1
IMAGES = 256  # a power of two: torchattacks' mean over the batch scales gradients exactly
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def net(digits: Data) -> nn.Module:
    """About 96% clean, 71% under PGD: 80 steps on FGSM examples."""
    attack = FGSM(eps=EPS, random_start=True)

    def perturb(model: nn.Module, x: Tensor, y: Tensor, step: int) -> Tensor:
        return attack(model, x, y, draw=Draw(step))

    return learnt(digits, width=4, steps=80, perturb=perturb)


@pytest.fixture(scope="module")
def batch(digits: Data) -> Batch:
    return digits.test.pixels()[:IMAGES].contiguous(), digits.test.labels[:IMAGES]


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        right: Tensor = net(x).argmax(1) == y
    return right.float().mean().item()


def by_foolbox(attack: object, net: nn.Module, batch: Batch, eps: float = EPS) -> Tensor:
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    _, x_adv, _ = attack(model, *batch, epsilons=eps)  # type: ignore[operator]
    assert isinstance(x_adv, Tensor)
    return x_adv


def test_the_network_is_worth_attacking(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    assert accuracy(net, x, y) > 0.9
    assert 0.4 < accuracy(net, FGSM(eps=EPS)(net, x, y), y) < 0.9


def test_fgsm_equals_torchattacks(net: nn.Module, batch: Batch) -> None:
    found = FGSM(eps=EPS)(net, *batch)
    expected = torchattacks.FGSM(net, eps=EPS)(*batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_fgsm_equals_foolbox(net: nn.Module, batch: Batch) -> None:
    found = FGSM(eps=EPS)(net, *batch)
    expected = by_foolbox(foolbox.attacks.LinfFastGradientAttack(), net, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_pgd_from_the_image_equals_torchattacks(net: nn.Module, batch: Batch, steps: int) -> None:
    attack = PGD(eps=EPS, step_size=EPS / 4, steps=steps, random_start=False)
    library = torchattacks.PGD(net, eps=EPS, alpha=EPS / 4, steps=steps, random_start=False)
    torch.testing.assert_close(attack(net, *batch), library(*batch), atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_pgd_from_the_image_equals_foolbox(net: nn.Module, batch: Batch, steps: int) -> None:
    attack = PGD(eps=EPS, step_size=EPS / 4, steps=steps, random_start=False)
    library = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=steps, random_start=False)
    expected = by_foolbox(library, net, batch)
    torch.testing.assert_close(attack(net, *batch), expected, atol=1e-6, rtol=0)


def test_robust_accuracy_agrees_with_the_libraries(net: nn.Module, batch: Batch) -> None:
    x, y = batch
    ours = PGD(eps=EPS, step_size=EPS / 4, steps=20)(net, x, y, draw=Draw(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = torchattacks.PGD(net, eps=EPS, alpha=EPS / 4, steps=20)(x, y)
        library = foolbox.attacks.LinfPGD(abs_stepsize=EPS / 4, steps=20)
        second = by_foolbox(library, net, batch)
    found = accuracy(net, ours, y)
    assert 0.4 < found < 0.9
    assert accuracy(net, first, y) == pytest.approx(found, abs=0.03)
    assert accuracy(net, second, y) == pytest.approx(found, abs=0.03)
