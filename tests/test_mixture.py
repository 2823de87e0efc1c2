"""The mixture against values computed by hand, at its limits, in bfloat16 and exported."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fmoe.models.experts import ResNet18
from fmoe.models.gates import Conv, Gate, LinearNet, Top1, Uniform
from fmoe.models.mixture import Mixing, Mixture, mix_logits, mix_probabilities, straight_through

MIXINGS: tuple[Mixing, ...] = ("probabilities", "logits")
every_mixing = pytest.mark.parametrize("mixing", MIXINGS)
soft_and_hard = pytest.mark.parametrize("hard", [False, True], ids=["soft", "top1"])
LOG3, LOG4 = math.log(3), math.log(4)
GATES: list[Gate] = [Conv(width=4, temperature=0.5), Top1(width=4)]
IMAGE = torch.zeros(1, 1, 2, 2)


class Fixed(nn.Module):
    """The same logits for every image; they are parameters, so that they have gradients."""

    def __init__(self, *logits: float):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def fixed(
    gate: tuple[float, ...],
    *experts: tuple[float, ...],
    temperature: float = 1,
    mixing: Mixing = "probabilities",
    hard: bool = False,
) -> Mixture:
    parts = [Fixed(*logits) for logits in experts]
    return Mixture(parts, Fixed(*gate), temperature=temperature, mixing=mixing, hard=hard)


def network(gate: Gate, experts: int = 2, mixing: Mixing = "probabilities") -> Mixture:
    torch.manual_seed(0)
    mean, std = (0.5,), (0.25,)
    return Mixture(
        [ResNet18(mean=mean, std=std, classes=10, width=4) for _ in range(experts)],
        gate.build(shape=(1, 8, 8), mean=mean, std=std, experts=experts),
        temperature=gate.temperature,
        mixing=mixing,
        hard=gate.hard,
    ).eval()


def by_gate(model: Mixture, value: Tensor) -> Tensor:
    """The gradient of a value by the logits of a fixed gate."""
    assert isinstance(model.gate, Fixed)
    (found,) = torch.autograd.grad(value, model.gate.logits)
    return found


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor([expected]).float(), atol=1e-6, rtol=1e-6)


# by hand: gate logits (log 3, 0), so weights (3/4, 1/4);
# experts' logits (log 3, 0) and (0, 0), so probabilities (3/4, 1/4) and (1/2, 1/2)


def test_probabilities_by_hand() -> None:
    # 3/4 (3/4, 1/4) + 1/4 (1/2, 1/2) = (11/16, 5/16)
    model = fixed((LOG3, 0), (LOG3, 0), (0, 0))
    close(model(IMAGE).exp(), [11 / 16, 5 / 16])


def test_logits_by_hand() -> None:
    # 3/4 (log 3, 0) + 1/4 (0, 0) = (3/4 log 3, 0); softmax: 3^(3/4) = 2.279507, / 3.279507
    model = fixed((LOG3, 0), (LOG3, 0), (0, 0), mixing="logits")
    close(model(IMAGE).exp(), [0.695076, 0.304924])


def test_temperature_by_hand() -> None:
    # at temperature 1/2 the gate's logits double: weights (9/10, 1/10)
    # 9/10 (3/4, 1/4) + 1/10 (1/2, 1/2) = (29/40, 11/40)
    model = fixed((LOG3, 0), (LOG3, 0), (0, 0), temperature=0.5)
    close(model.gate_weights(IMAGE), [0.9, 0.1])
    close(model(IMAGE).exp(), [29 / 40, 11 / 40])


def test_disagreeing_experts_by_hand() -> None:
    # experts (4/5, 1/5) and (1/5, 4/5), weights (1/2, 1/2): the mixings agree on (1/2, 1/2)
    for mixing in MIXINGS:
        close(fixed((0, 0), (LOG4, 0), (0, LOG4), mixing=mixing)(IMAGE).exp(), [0.5, 0.5])


def test_probabilities_are_bounded_by_the_weights_and_logits_are_not() -> None:
    # a sure expert of weight 1/4 cannot outvote the other by probabilities: at most 1/4 + 3/8
    # by logits it can: 1/4 (100, 0) + 3/4 (0, 0) = (25, 0)
    gate, experts = (0.0, LOG3), ((100.0, 0.0), (0.0, 0.0))
    close(fixed(gate, *experts)(IMAGE).exp(), [0.625, 0.375])
    close(fixed(gate, *experts, mixing="logits")(IMAGE), [0.0, -25.0])


@every_mixing
@soft_and_hard
def test_one_expert_is_itself(mixing: Mixing, hard: bool) -> None:
    model = fixed((7,), (LOG3, 0), mixing=mixing, hard=hard)
    close(model(IMAGE).exp(), [0.75, 0.25])


@every_mixing
def test_small_temperature_is_the_best_expert(mixing: Mixing) -> None:
    model = fixed((0, 1, 0), (0, 5), (LOG3, 0), (2, 3), temperature=1e-3, mixing=mixing)
    close(model.gate_weights(IMAGE), [0, 1, 0])
    close(model(IMAGE).exp(), [0.75, 0.25])


@every_mixing
def test_large_temperature_is_uniform(mixing: Mixing) -> None:
    parts = ((0.0, 5.0), (LOG3, 0.0), (2.0, 3.0))
    model = fixed((0, 1, 0), *parts, temperature=1e8, mixing=mixing)
    close(model.gate_weights(IMAGE), [1 / 3] * 3)
    torch.testing.assert_close(model(IMAGE), fixed((0, 0, 0), *parts, mixing=mixing)(IMAGE))


def test_uniform_gate_averages_the_probabilities() -> None:
    model, x = network(Uniform(), experts=3), torch.rand(4, 1, 8, 8)
    expected = model.expert_logits(x).softmax(2).mean(1)
    torch.testing.assert_close(model(x).exp(), expected)


# laws


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    experts=st.integers(1, 5),
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]),
    mixing=st.sampled_from(MIXINGS),
    hard=st.booleans(),
)
def test_probabilities_sum_to_1(
    seed: int, experts: int, classes: int, scale: float, mixing: Mixing, hard: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, experts, classes, generator=generator)
    log_weights = F.log_softmax(scale * torch.randn(3, experts, generator=generator), 1)
    model = Mixture([], nn.Identity(), mixing=mixing, hard=hard)
    sums = model.combine(log_weights, logits).exp().sum(1)
    torch.testing.assert_close(sums, torch.ones(3), atol=1e-4, rtol=0)


@every_mixing
@soft_and_hard
@pytest.mark.parametrize("gate", [(0.0, 0.0), (1e4, -1e4)])
def test_extreme_logits_stay_finite(mixing: Mixing, hard: bool, gate: tuple[float, float]) -> None:
    model = fixed(gate, (1e4, -1e4, 0), (-1e4, 1e4, 0), mixing=mixing, hard=hard)
    out = model(IMAGE)
    assert out.isfinite().all()
    loss = F.nll_loss(out, torch.tensor([2]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_functions_agree_with_the_plain_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, generator=generator)
    log_weights = F.log_softmax(torch.randn(4, 3, generator=generator), 1)
    weights = log_weights.exp()
    torch.testing.assert_close(
        mix_probabilities(log_weights, logits),
        torch.einsum("be,bek->bk", weights, logits.softmax(2)).log(),
    )
    torch.testing.assert_close(
        mix_logits(weights, logits),
        torch.einsum("be,bek->bk", weights, logits).log_softmax(1),
    )


@every_mixing
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: str(gate.kind))
def test_the_ways_to_ask_agree(gate: Gate, mixing: Mixing) -> None:
    model, x = network(gate, experts=3, mixing=mixing), torch.rand(5, 1, 8, 8)
    out, soft_weights = model.outputs(x)
    logits = model.expert_logits(x)
    assert logits.shape == (5, 3, 10)
    assert soft_weights.shape == (5, 3)
    torch.testing.assert_close(model(x), out)
    torch.testing.assert_close(model.combine(soft_weights.log(), logits), out)
    torch.testing.assert_close(model.log_gate_weights(x).exp(), soft_weights)
    torch.testing.assert_close(soft_weights.sum(1), torch.ones(5))
    for index, expert in enumerate(model.experts):
        torch.testing.assert_close(logits[:, index], expert(x))
    weights = model.gate_weights(x)
    if gate.hard:
        assert torch.equal(weights.argmax(1), soft_weights.argmax(1))
        torch.testing.assert_close(weights, F.one_hot(weights.argmax(1), 3).float())
    else:
        torch.testing.assert_close(weights, soft_weights)


@every_mixing
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: str(gate.kind))
def test_autocast_to_bfloat16_ends_in_float32(gate: Gate, mixing: Mixing) -> None:
    model, x = network(gate, mixing=mixing), torch.rand(4, 1, 8, 8)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.experts[0](x).dtype == torch.bfloat16
        out, weights = model.outputs(x)
        assert model.expert_logits(x).dtype == torch.float32
    assert out.dtype == torch.float32
    assert weights.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)
    torch.testing.assert_close(out.exp().sum(1), torch.ones(4))


def test_float64_stays_float64() -> None:
    model, x = network(Conv(width=4)).double(), torch.rand(2, 1, 8, 8).double()
    out, weights = model.outputs(x)
    assert out.dtype == torch.float64
    assert weights.dtype == torch.float64


# top1


@every_mixing
def test_top1_is_the_chosen_expert(mixing: Mixing) -> None:
    model = network(Top1(width=4, temperature=0.5), experts=3, mixing=mixing)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 1, 8, 8, generator=generator)
    assert isinstance(model.gate.head, nn.Linear)
    model.gate.head.bias.data -= model.gate(x).mean(0)
    choice = model.gate(x).argmax(1)
    assert len(choice.unique()) > 1  # else this shows little
    expected = model.expert_logits(x)[torch.arange(64), choice].log_softmax(1)
    torch.testing.assert_close(model(x), expected)


def test_straight_through_is_one_hot_with_the_gradient_of_softmax() -> None:
    gate = torch.tensor([[0.3, 1.2, -0.5]], requires_grad=True)
    direction = torch.tensor([[1.0, -2.0, 0.5]])
    hard = straight_through(gate.log_softmax(1))
    assert hard.tolist() == [[0, 1, 0]]
    (found,) = torch.autograd.grad((hard * direction).sum(), gate)
    (expected,) = torch.autograd.grad((gate.softmax(1) * direction).sum(), gate)
    torch.testing.assert_close(found, expected)


def test_top1_gate_gradient_by_hand_for_probabilities() -> None:
    # weights softmax(log 3, 0) = (3/4, 1/4): expert 0 is chosen. p_0 = (3/4, 1/4), p_1 = (1/2, 1/2)
    # out_k = log sum_e h_e p_ek, h the one-hot: d out_k / d h_e = p_ek / p_0k = (1, 2/3) for k = 0
    # straight-through: d h_0 / d g_0 = 3/4 * 1/4 = 3/16 = - d h_1 / d g_0
    # d out_0 / d g_0 = 3/16 (1 - 2/3) = 1/16, and - 1/16 for g_1
    model = fixed((LOG3, 0), (LOG3, 0), (0, 0), hard=True)
    found = by_gate(model, model(IMAGE)[0, 0])
    torch.testing.assert_close(found, torch.tensor([1 / 16, -1 / 16]))


def test_top1_gate_gradient_by_hand_for_logits() -> None:
    # out_0 = z_0 - logsumexp z, z = sum_e h_e z_e: d out_0 / d h_e = (1 - p_0) z_e0 - p_1 z_e1
    # p = (3/4, 1/4): 1/4 log 3 for e = 0, and 0 for e = 1. d out_0 / d g_0 = 3/16 * 1/4 log 3
    model = fixed((LOG3, 0), (LOG3, 0), (0, 0), hard=True, mixing="logits")
    found = by_gate(model, model(IMAGE)[0, 0])
    expected = 3 / 64 * LOG3
    torch.testing.assert_close(found, torch.tensor([expected, -expected]))


def test_top1_gradient_scales_with_the_temperature() -> None:
    # equal gate logits: weights (1/2, 1/2) whatever T; d h_0 / d g_0 = 1/4 / T; expert 0 is chosen
    # d out_0 / d g_0 = 1/4 / T (1 - (1/2) / (3/4)) = 1 / (12 T)
    model = fixed((0, 0), (LOG3, 0), (0, 0), hard=True, temperature=4)
    found = by_gate(model, model(IMAGE)[0, 0])
    torch.testing.assert_close(found, torch.tensor([1 / 48, -1 / 48]))


@every_mixing
def test_top1_trains_the_chosen_expert_and_the_gate(mixing: Mixing) -> None:
    model = fixed((1, 0), (1, 0, 0), (0, 2, 0), hard=True, mixing=mixing)
    loss = F.nll_loss(model(IMAGE), torch.tensor([1]))
    # the chosen expert gets the gradient of its own cross-entropy, softmax - one-hot; none other
    chosen, other = torch.autograd.grad(loss, list(model.experts.parameters()), retain_graph=True)
    expected = torch.tensor([1.0, 0, 0]).softmax(0) - torch.tensor([0, 1.0, 0])
    torch.testing.assert_close(chosen, expected)
    assert not other.any()
    # expert 1 would be right: descending moves the gate to it
    found = by_gate(model, loss)
    assert found[0] > 0 > found[1]


def test_top1_gradient_is_bounded_where_the_chosen_expert_gives_no_chance() -> None:
    model = fixed((1, 0), (80, 0), (0, 0), hard=True)
    found = by_gate(model, F.nll_loss(model(IMAGE), torch.tensor([1])))
    assert found.isfinite().all()
    assert found[0] > 0  # and still points away from the expert that is wrong


# export


def assert_exports(model: Mixture) -> None:
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    example = (torch.rand(2, 1, 8, 8),)
    exported = torch.export.export(model, example, dynamic_shapes=(batch,)).module()
    for size in (1, 5):
        x = torch.rand(size, 1, 8, 8)
        torch.testing.assert_close(exported(x), model(x))


@every_mixing
@pytest.mark.parametrize("gate", GATES, ids=lambda gate: str(gate.kind))
def test_exports_with_a_dynamic_batch(gate: Gate, mixing: Mixing) -> None:
    model = network(gate, mixing=mixing)
    model.experts = nn.ModuleList(
        LinearNet(mean=(0.5,), std=(0.25,), experts=10, shape=(1, 8, 8)) for _ in range(2)
    )  # they trace faster
    assert_exports(model)


def test_exports_with_resnets() -> None:
    assert_exports(network(Conv(width=4)))
