"""Every kind of gate: what it builds, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from fmoe.models.gates import Conv, Gate, GateConfig, Linear, LinearNet, ResNet, Top1, Uniform

MEAN, STD = (0.2, 0.3, 0.4), (0.5, 0.5, 0.5)
SHAPE = (3, 8, 8)
GATES: list[Gate] = [Conv(width=4), ResNet(width=4), Linear(), Uniform(), Top1(width=4)]
every_gate = pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.kind)


@every_gate
@pytest.mark.parametrize("experts", [1, 5])
def test_gives_one_logit_an_expert(gate: Gate, experts: int) -> None:
    net = gate.build(shape=SHAPE, mean=MEAN, std=STD, experts=experts)
    logits = net(torch.rand(6, *SHAPE))
    assert logits.shape == (6, experts)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_gate
def test_fits_grey_digits(gate: Gate) -> None:
    net = gate.build(shape=(1, 8, 8), mean=(0.3,), std=(0.4,), experts=3)
    assert net(torch.rand(2, 1, 8, 8)).shape == (2, 3)


@every_gate
def test_only_uniform_ignores_the_image(gate: Gate) -> None:
    torch.manual_seed(0)
    logits = gate.build(shape=SHAPE, mean=MEAN, std=STD, experts=3).eval()(torch.rand(4, *SHAPE))
    assert (logits.std(0).max() == 0) == isinstance(gate, Uniform)


def test_uniform_is_equal_and_has_no_parameters() -> None:
    net = Uniform().build(shape=SHAPE, mean=MEAN, std=STD, experts=4)
    assert torch.equal(net(torch.rand(2, *SHAPE)), torch.zeros(2, 4))
    assert not list(net.parameters())


@every_gate
def test_only_top1_is_hard(gate: Gate) -> None:
    assert gate.hard == (gate.kind == "top1")  # type: ignore[attr-defined]


def test_linear_by_hand() -> None:
    net = LinearNet(mean=(0.5,), std=(0.25,), experts=2, shape=(1, 1, 2))
    net.head.weight.data = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    net.head.bias.data = torch.tensor([0.0, 3.0])
    # ((1, 0.25) - 0.5) / 0.25 = (2, -1): 2 - 2 = 0 and 1 + 3 = 4
    assert net(torch.tensor([[[[1.0, 0.25]]]])).tolist() == [[0.0, 4.0]]


def test_width_is_the_networks() -> None:
    sizes = [
        sum(
            p.numel()
            for p in Conv(width=w).build(shape=SHAPE, mean=MEAN, std=STD, experts=2).parameters()
        )
        for w in (4, 8)
    ]
    # w: 27 w + 2 w + 18 w^2 + 4 w + 2 (2 w + 1): 4 -> 438, 8 -> 1450
    assert sizes == [438, 1450]


@every_gate
@pytest.mark.parametrize("temperature", [0, -1, math.inf, math.nan, 1e5])
def test_refuses_a_temperature(gate: Gate, temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        type(gate)(temperature=temperature)


@every_gate
@pytest.mark.parametrize("temperature", [1e-3, 1, 1e4])
def test_takes_a_temperature(gate: Gate, temperature: float) -> None:
    assert type(gate)(temperature=temperature).temperature == temperature


@pytest.mark.parametrize("width", [0, 1025])
def test_refuses_a_width(width: int) -> None:
    with pytest.raises(ValidationError, match="width"):
        Conv(width=width)


def test_kinds_are_named() -> None:
    adapter: TypeAdapter[Gate] = TypeAdapter(GateConfig)
    for gate in GATES:
        assert adapter.validate_python(gate.model_dump()) == gate
    with pytest.raises(
        ValidationError, match="'conv', 'resnet', 'linear', 'features', 'uniform', 'top1'"
    ):
        adapter.validate_python({"kind": "mlp"})
    with pytest.raises(ValidationError, match=r"unknown key width \(allowed: temperature, kind\)"):
        adapter.validate_python({"kind": "uniform", "width": 4})
