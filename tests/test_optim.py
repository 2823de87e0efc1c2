"""Learning rates as functions of the step, SGD and Muon as they are built."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fmoe.optim import SGD, Constant, Cyclic, Muon, OptimizerConfig, Optimizers, Piecewise


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
    ((optimizer, _),) = SGD(lr=0.3, momentum=0.8, weight_decay=1e-3).build({"p": parameter}).parts
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert group["params"] == [parameter]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.3, 0.8, 1e-3)
    assert group["nesterov"] is True


def test_one_step_by_hand() -> None:
    # g = 2 + 0.5 * 1 = 2.5; the buffer is g; Nesterov: g + 0.9 g = 4.75; 1 - 0.1 * 4.75 = 0.525
    parameter = nn.Parameter(torch.ones(()))
    sgd = SGD(lr=0.1, momentum=0.9, weight_decay=0.5, schedule=Constant())
    optimizers = sgd.build({"p": parameter})
    assert optimizers.momentum() == {}
    torch.autograd.backward(2 * parameter)
    optimizers.step(0, 1)
    assert parameter.item() == pytest.approx(0.525)
    assert optimizers.momentum()["p"].item() == pytest.approx(2.5)


@pytest.mark.parametrize("sgd", [SGD(momentum=0), SGD(nesterov=False)])
def test_plain_sgd_where_asked(sgd: SGD) -> None:
    ((optimizer, _),) = sgd.build({"p": nn.Parameter(torch.ones(2))}).parts
    assert optimizer.param_groups[0]["nesterov"] is False


# Muon


def network(memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3), nn.Conv2d(2, 6, 1),
        nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    return made.to(memory_format=memory_format)


def built(model: nn.Module) -> Optimizers:
    return Muon(lr=0.05, schedule=Constant()).build(dict(model.named_parameters()))


def descend(model: nn.Module, optimizers: Optimizers, steps: range) -> None:
    for step in steps:
        images = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(images), torch.arange(4)))
        optimizers.step(step, 1)


def polar(matrix: Tensor) -> Tensor:
    """The nearest matrix whose singular values are all 1."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    factor: Tensor = left @ right
    return factor


def test_muon_steps_by_the_polar_factor_of_a_convolutions_gradient() -> None:
    model = network()
    optimizers = built(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    descend(model, optimizers, range(1))
    for name in ("0.weight", "2.weight", "3.weight"):
        weight = model.get_parameter(name)
        assert weight.grad is not None
        # the first step's momentum is the gradient, and a norm does not change the factor
        gradient = weight.grad.flatten(1)
        stretch = max(1, gradient.shape[0] / gradient.shape[1]) ** 0.5
        kept = before[name].flatten(1) * (1 - 0.05 * 0.02)
        step = (kept - weight.detach().flatten(1)) / (0.05 * stretch)
        values = torch.linalg.svdvals(step)
        assert values.min() > 0.5, name  # what five iterations promise
        assert values.max() < 1.3, name
        along = torch.cosine_similarity(step.flatten(), polar(gradient).flatten(), dim=0)
        assert along > 0.95, name


def test_muon_leaves_all_but_convolutions_to_sgd() -> None:
    model, other = network(), network()
    descend(model, built(model), range(1))
    rest = {name: p for name, p in other.named_parameters() if p.ndim < 4}
    descend(other, SGD(lr=0.2, schedule=Constant()).build(rest), range(1))
    assert len(rest) == 7
    for name, parameter in rest.items():
        assert torch.equal(model.get_parameter(name), parameter), name


def test_the_memorys_order_changes_nothing_for_muon() -> None:
    model, other = network(), network(torch.contiguous_format)
    descend(model, built(model), range(3))
    descend(other, built(other), range(3))
    for name, parameter in model.named_parameters():
        # sums of bfloat16 products in another order
        torch.testing.assert_close(parameter, other.get_parameter(name), atol=2e-3, rtol=0.02)


def test_muon_goes_on_from_its_momentum() -> None:
    whole, first = network(), network()
    descend(whole, built(whole), range(4))
    stopped = built(first)
    descend(first, stopped, range(2))
    resumed = network()
    resumed.load_state_dict(first.state_dict())
    optimizers = built(resumed)
    optimizers.restore({name: m.clone() for name, m in stopped.momentum().items()})
    descend(resumed, optimizers, range(2, 4))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_momentum_of_another_optimizer_is_not_taken_over() -> None:
    model = network()
    sgd = SGD().build(dict(model.named_parameters()))
    descend(model, sgd, range(1))
    optimizers = built(model)
    optimizers.restore(sgd.momentum())
    assert set(optimizers.momentum()) == {n for n, p in model.named_parameters() if p.ndim < 4}


def test_momentum_of_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(KeyError, match="other"):
        built(network()).restore({"other": torch.zeros(2)})


@pytest.mark.parametrize("part", [2, 5])
def test_muon_without_convolutions_or_without_the_rest(part: int) -> None:
    model = network()
    parameters = {"weight": model.get_parameter(f"{part}.weight")}
    optimizers = Muon().build(parameters)
    before = parameters["weight"].detach().clone()
    descend(model, optimizers, range(1))
    assert not torch.equal(before, parameters["weight"])


def test_an_optimizer_without_kind_is_sgd() -> None:
    adapter: TypeAdapter[SGD | Muon] = TypeAdapter(OptimizerConfig)
    assert adapter.validate_python({"lr": 0.3}) == SGD(lr=0.3)
    assert adapter.validate_python({"kind": "muon", "lr": 0.3}) == Muon(lr=0.3)
    with pytest.raises(ValidationError, match="'sgd', 'muon'"):
        adapter.validate_python({"kind": "adam"})


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
