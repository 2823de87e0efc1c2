"""Attackers and training see the gradient through the gate, too.

A gradient that treats the gate's weights as constants (crafting examples on frozen weights) is a
different one, and wrong: finite differences tell which.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.attacks import PGD, input_gradient
from fmoe.models.experts import ResNet18
from fmoe.models.gates import Conv, Gate, Linear, ResNet
from fmoe.models.mixture import Mixing, Mixture

STEP = 1e-6
Y = torch.tensor([3, 7])
SHAPE = (1, 8, 8)


def tiny(gate: Gate, mixing: Mixing, dtype: torch.dtype = torch.float64) -> Mixture:
    """Two experts and a gate in eval mode; experts scaled up, so that the choice matters."""
    torch.manual_seed(0)
    mean, std = (0.5,), (0.25,)
    experts = [ResNet18(mean=mean, std=std, classes=10, width=4) for _ in range(2)]
    net = gate.build(shape=SHAPE, mean=mean, std=std, experts=2)
    for part in (*experts, net):
        assert isinstance(part.head, nn.Linear)
        nn.init.normal_(part.head.weight, std=0.5)
    model = Mixture(experts, net, temperature=gate.temperature, mixing=mixing)
    return model.to(dtype).eval()


def images(dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((2, *SHAPE), generator=generator, dtype=torch.float64).to(dtype)


def loss(model: Mixture, x: Tensor, y: Tensor = Y) -> Tensor:
    return F.nll_loss(model(x), y.expand(len(x)), reduction="none")


def frozen_loss(model: Mixture, x: Tensor) -> Tensor:
    """The same value; the gate's weights count as constants."""
    with torch.no_grad():
        log_weights = model.log_gate_weights(x)
    return F.nll_loss(model.combine(log_weights, model.expert_logits(x)), Y, reduction="none")


def gradient(value: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), x)
    return found


def finite_differences(model: Mixture, x: Tensor) -> Tensor:
    """Central differences in every pixel; the moved images of one image are one batch."""
    moves = STEP * torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *SHAPE)
    with torch.no_grad():
        found = [
            loss(model, image + moves, label) - loss(model, image - moves, label)
            for image, label in zip(x, Y, strict=True)
        ]
    return torch.stack(found).view_as(x) / (2 * STEP)


every_gate = pytest.mark.parametrize(
    "gate",
    [Linear(), Conv(width=4, temperature=0.5), ResNet(width=4)],
    ids=lambda gate: str(gate.kind),
)
every_mixing = pytest.mark.parametrize("mixing", ["probabilities", "logits"])


@every_gate
@every_mixing
def test_the_input_gradient_goes_through_the_gate(gate: Gate, mixing: Mixing) -> None:
    model, x = tiny(gate, mixing), images().requires_grad_(True)
    torch.testing.assert_close(loss(model, x), frozen_loss(model, x), atol=0, rtol=1e-12)
    full, frozen = gradient(loss(model, x), x), gradient(frozen_loss(model, x), x)
    expected = finite_differences(model, x.detach())
    scale = expected.abs().max().item()
    torch.testing.assert_close(full, expected, atol=1e-6 * scale, rtol=1e-5)
    assert (frozen - expected).abs().max() > 1e-2 * scale


@every_gate
@every_mixing
def test_attacks_ascend_the_full_gradient(gate: Gate, mixing: Mixing) -> None:
    model, x = tiny(gate, mixing), images().requires_grad_(True)
    full = gradient(loss(model, x), x)
    torch.testing.assert_close(input_gradient(model, x, Y, "ce", None), full, rtol=1e-9, atol=1e-12)
    taken = PGD(eps=0.1, steps=1, random_start=False)(model, x.detach(), Y) - x.detach()
    inside = taken.abs() > 0.02  # not clipped at 0 or 1
    assert inside.float().mean() > 0.8
    assert torch.equal(taken.sign()[inside], full.sign()[inside])


@every_mixing
def test_the_gates_parameters_get_gradients_that_finite_differences_confirm(
    mixing: Mixing,
) -> None:
    model, x = tiny(Conv(width=4), mixing), images()
    torch.autograd.backward(loss(model, x).sum())
    for name, parameter in model.gate.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert isinstance(model.gate.head, nn.Linear)
    bias = model.gate.head.bias
    with torch.no_grad():
        bias[0] += STEP
        above = loss(model, x).sum()
        bias[0] -= 2 * STEP
        below = loss(model, x).sum()
    assert bias.grad is not None
    assert bias.grad[0].item() == pytest.approx(((above - below) / (2 * STEP)).item(), rel=1e-5)


@every_mixing
def test_float32_gives_the_same_gradient(mixing: Mixing) -> None:
    gradients = []
    for dtype in (torch.float64, torch.float32):
        model, x = tiny(Conv(width=4), mixing, dtype), images(dtype).requires_grad_(True)
        gradients.append(gradient(loss(model, x), x).double())
    scale = gradients[0].abs().max().item()
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-3 * scale, rtol=1e-3)
