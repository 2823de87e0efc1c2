"""Learning rates as functions of the step, SGD and Muon as they are built."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from fmoe.errors import UserError
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
    assert list(optimizers.state()) == ["p/"]  # has not learned yet
    torch.autograd.backward(2 * parameter)
    optimizers.step(0, 1)
    assert parameter.item() == pytest.approx(0.525)
    assert optimizers.state()["p/momentum_buffer"].item() == pytest.approx(2.5)


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
    optimizers.restore({name: m.clone() for name, m in stopped.state().items()})
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    descend(resumed, optimizers, range(2, 4))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_state_of_another_optimizer_is_refused_and_nothing_of_it_kept() -> None:
    model = network()
    sgd = SGD().build(dict(model.named_parameters()))
    descend(model, sgd, range(1))
    optimizers = built(model)
    with pytest.raises(UserError, match=r"0.weight/momentum_buffer is .*\[8, 3, 3, 3\], not "):
        optimizers.restore(sgd.state())
    assert all(not optimizer.state for optimizer, _ in optimizers.parts)


DOCTORED: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "of no parameter": (lambda s: s.update({"x/momentum_buffer": torch.zeros(2)}), "is unknown"),
    "of no name": (lambda s: s.update({"5.bias/step": torch.zeros(())}), "is unknown"),
    "one less": (lambda s: s.pop("5.bias/momentum_buffer"), "is missing"),
    "none": (lambda s: s.clear(), "is missing"),
    "shape": (lambda s: s.update({"5.bias/momentum_buffer": torch.zeros(5)}), r"not .* \[4\]"),
    "type": (lambda s: s.update({"5.bias/momentum_buffer": torch.zeros(4).double()}), "float64"),
}


@pytest.mark.parametrize("kind", DOCTORED)
def test_state_that_is_not_all_or_not_only_this_optimizers_is_refused(kind: str) -> None:
    model = network()
    stopped = built(model)
    descend(model, stopped, range(1))
    state = stopped.state()
    change, message = DOCTORED[kind]
    change(state)
    with pytest.raises(UserError, match=message) as caught:
        built(network()).restore(state)
    assert "\n" not in str(caught.value)


def test_a_parameter_that_has_not_learned_yet_stays_so() -> None:
    """It got no gradient: its first step is still to come after the resume."""
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    stopped = SGD().build({"used": used, "unused": unused})
    torch.autograd.backward(used.sum())
    stopped.step(0, 1)
    state = stopped.state()
    assert sorted(state) == ["unused/", "used/momentum_buffer"]
    resumed = SGD().build({"used": used, "unused": unused})
    resumed.restore(state)
    assert sorted(resumed.state()) == sorted(state)


def test_without_momentum_nothing_is_remembered() -> None:
    parameter = nn.Parameter(torch.ones(2))
    plain = SGD(momentum=0).build({"p": parameter})
    torch.autograd.backward(parameter.sum())
    plain.step(0, 1)
    assert list(plain.state()) == ["p/"]
    SGD(momentum=0).build({"p": parameter}).restore(plain.state())
    # nothing is what an optimizer with momentum keeps of a parameter before its first gradient
    SGD().build({"p": parameter}).restore(plain.state())


class Remembering(torch.optim.Optimizer):
    """One that keeps what it is told to keep."""

    def __init__(self, parameter: nn.Parameter, **memory: object):
        super().__init__([parameter], {"lr": 0.1})
        self.memory = memory

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = dict(self.memory)


def remembering(**memory: object) -> Optimizers:
    parameter = nn.Parameter(torch.ones(2))
    return Optimizers(Constant(), [(Remembering(parameter, **memory), {"p": parameter})])


def test_numbers_are_kept_as_the_numbers_that_they_are() -> None:
    stopped = remembering(count=3, share=0.1, seen=True)
    stopped.step(0, 1)
    state = stopped.state()
    assert {name: tensor.shape for name, tensor in state.items()} == {
        "p/count": (), "p/share": (), "p/seen": (),
    }  # fmt: skip
    resumed = remembering(count=0, share=0.0, seen=False)
    resumed.restore(state)
    ((optimizer, _),) = resumed.parts
    (memory,) = optimizer.state.values()
    assert memory == {"count": 3, "share": 0.1, "seen": True}
    assert [type(value) for value in memory.values()] == [int, float, bool]


@pytest.mark.parametrize("value", ["text", None, [torch.zeros(2)], {"a": 1}])
def test_state_that_cannot_be_kept_is_refused_when_it_is_saved(value: object) -> None:
    optimizers = remembering(odd=value)
    optimizers.step(0, 1)
    with pytest.raises(UserError, match=r"the optimizer's state odd is a \w+, which no checkpoint"):
        optimizers.state()


def test_state_of_no_parameter_is_refused_when_it_is_saved() -> None:
    optimizers = remembering()
    optimizers.parts[0][0].state[torch.zeros(1)] = {"total": torch.zeros(())}
    with pytest.raises(UserError, match="state of no parameter"):
        optimizers.state()


def test_settings_that_a_step_changes_are_refused_when_they_are_saved() -> None:
    optimizers = remembering()
    optimizers.groups[0]["lr"] = 0.5  # the schedule's
    optimizers.state()
    optimizers.groups[0]["d"] = 2.0
    with pytest.raises(UserError, match="changes its own settings"):
        optimizers.state()


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
