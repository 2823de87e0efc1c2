"""Folded copies compute what the network computes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fmoe import assembly, config
from fmoe.fast.folding import Twin, folded
from tests.networks import settled


@pytest.fixture(scope="module", params=["conv", "resnet", "linear", "uniform", "top1"])
def mixture(request: pytest.FixtureRequest) -> nn.Module:
    width = [] if request.param in ("linear", "uniform") else ["gate.width=4"]
    settings = [f"gate={{kind: {request.param}}}", *width, "experts.backbone.width=4"]
    return settled(assembly.mixture(config.load("digits-whole", settings)))


def test_same_outputs_and_gradients(mixture: nn.Module) -> None:
    """In float64: in float32 a unit next to its kink may fall on the other side."""
    precise = copy.deepcopy(mixture).double()
    twin, x = folded(precise), torch.rand(6, 1, 8, 8, dtype=torch.float64)
    gradients = []
    for model in (precise, twin):
        leaf = x.clone().requires_grad_(True)
        outputs = model(leaf)
        gradients.append((outputs, torch.autograd.grad(outputs[:, 3].sum(), leaf)[0]))
    (plain, plain_gradient), (fast, fast_gradient) = gradients
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=1e-8, atol=1e-10)


def test_nothing_of_ours_keeps_its_batch_norm(mixture: nn.Module) -> None:
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded(mixture).modules())
    assert not any(parameter.requires_grad for parameter in folded(mixture).parameters())


def test_the_model_stays_as_it_is(mixture: nn.Module) -> None:
    before = {key: tensor.clone() for key, tensor in mixture.state_dict().items()}
    mixture.train()
    folded(mixture)
    assert mixture.training
    mixture.eval()
    assert all(torch.equal(before[key], tensor) for key, tensor in mixture.state_dict().items())


def test_another_module_keeps_layers_whose_order_is_unknown() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(self.bn(x)).mean((2, 3))
            return y

    model, x = settled(Backwards()), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(folded(model)(x), model(x))


def test_a_convolution_that_has_a_bias() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
    x = torch.rand(4, 3, 8, 8)
    net(x)
    nn.init.normal_(net[0].bias)  # type: ignore[arg-type]
    twin = folded(settled(net))
    assert isinstance(twin.get_submodule("1"), nn.Identity)
    torch.testing.assert_close(twin(x), net(x))


def test_a_module_that_is_there_twice_is_seen_twice() -> None:
    relu = nn.ReLU()
    net = nn.Sequential(
        relu, nn.Conv2d(3, 4, 3), relu, nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5)
    )
    x = torch.rand(4, 3, 8, 8)
    net(x)
    torch.testing.assert_close(folded(settled(net))(x), net(x))


@pytest.mark.parametrize("setting", ["affine", "track_running_stats"])
def test_batch_norm_without_numbers_of_its_own_is_kept(setting: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, **{setting: False})).eval()
    x = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(folded(net)(x), net(x))


def test_a_twin_follows_the_training(mixture: nn.Module) -> None:
    model = copy.deepcopy(mixture).double()
    twin, x = Twin(model), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    assert not torch.allclose(twin.module(x), model(x))
    twin.refresh()
    torch.testing.assert_close(twin.module(x), model(x), rtol=1e-9, atol=1e-10)
