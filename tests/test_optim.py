"""Learning rates as functions of the step, and SGD as it is built."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fmoe.optim import SGD, Constant, Cyclic, Piecewise


def test_cyclic_by_hand() -> None:
    # done = (step + 1/2) / 10; up to 0.2: done / 0.2, then (1 - done) / 0.8
    factors = [Cyclic().factor(step, 10) for step in range(10)]
    expected = [0.25, 0.75, 0.9375, 0.8125, 0.6875, 0.5625, 0.4375, 0.3125, 0.1875, 0.0625]
    assert factors == pytest.approx(expected)


@pytest.mark.parametrize("peak", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_cyclic_rises_to_its_peak_then_falls(peak: float, steps: int) -> None:
    factors = [Cyclic(peak=peak).factor(step, steps) for step in range(steps)]
    top = factors.index(max(factors))
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert abs((top + 0.5) / steps - peak) <= 1 / steps


def test_piecewise_by_hand() -> None:
    factors = [Piecewise().factor(step, 8) for step in range(8)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_piecewise_with_its_own_milestones() -> None:
    schedule = Piecewise(milestones=[0.25], gamma=0.5)
    assert [schedule.factor(step, 4) for step in range(4)] == [1, 0.5, 0.5, 0.5]


def test_constant() -> None:
    assert [Constant().factor(step, 3) for step in range(3)] == [1, 1, 1]


def test_lr_at_is_lr_times_the_schedule() -> None:
    assert SGD(lr=0.4).lr_at(0, 10) == pytest.approx(0.1)
    assert SGD(lr=0.4, schedule=Constant()).lr_at(9, 10) == 0.4
    assert SGD(lr=0.4, schedule=Piecewise()).lr_at(9, 10) == pytest.approx(0.004)


def test_builds_nesterov_sgd() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = SGD(lr=0.3, momentum=0.8, weight_decay=1e-3).build([parameter])
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert group["params"] == [parameter]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 1e-3)
    assert group["nesterov"] is True


def test_one_step_by_hand() -> None:
    # g = 2 + 0.5 * 1 = 2.5; the buffer is g; Nesterov: g + 0.9 g = 4.75; 1 - 0.1 * 4.75 = 0.525
    parameter = nn.Parameter(torch.ones(()))
    optimizer = SGD(lr=0.1, momentum=0.9, weight_decay=0.5).build([parameter])
    torch.autograd.backward(2 * parameter)
    optimizer.step()
    assert parameter.item() == pytest.approx(0.525)


@pytest.mark.parametrize("optimizer", [SGD(momentum=0), SGD(nesterov=False)])
def test_plain_sgd_where_asked(optimizer: SGD) -> None:
    built = optimizer.build([nn.Parameter(torch.ones(2))])
    assert built.param_groups[0]["nesterov"] is False


@pytest.mark.parametrize(
    "value",
    [
        {"lr": 0},
        {"lr": float("inf")},
        {"momentum": 1},
        {"weight_decay": -1},
        {"schedule": {"kind": "cyclic", "peak": 0}},
        {"schedule": {"kind": "cyclic", "peak": 1}},
        {"schedule": {"kind": "piecewise", "milestones": [1.5]}},
        {"schedule": {"kind": "piecewise", "gamma": 0}},
        {"schedule": {"kind": "cosine"}},
        {"learning_rate": 0.1},
    ],
)
def test_refuses(value: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SGD.model_validate(value)
