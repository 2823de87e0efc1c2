"""Training losses against torch's and against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from fmoe.losses import CrossEntropy, LossConfig, Mart, Trades, gate_balance, own_losses

LOG3 = math.log(3)


def identity(x: Tensor) -> Tensor:
    """Images that are their own logits."""
    return x


def random_logits() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, x_adv = torch.randn(2, 6, 4, generator=generator)
    return x, x_adv, torch.randint(4, (6,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_on_the_adversarial_images(smoothing: float) -> None:
    x, x_adv, y = random_logits()
    loss, out = CrossEntropy(label_smoothing=smoothing)(identity, x, x_adv, y)
    expected = F.cross_entropy(x_adv, y, reduction="none", label_smoothing=smoothing)
    assert torch.equal(loss, expected)
    assert torch.equal(out, x_adv)


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.1), Trades(), Mart()]
)
def test_log_probabilities_do_as_well_as_logits(loss: CrossEntropy | Trades | Mart) -> None:
    x, x_adv, y = random_logits()
    of_logits = loss(identity, x, x_adv, y)[0]
    of_log_probabilities = loss(lambda z: z.log_softmax(1), x, x_adv, y)[0]
    torch.testing.assert_close(of_logits, of_log_probabilities)


def test_trades_by_hand() -> None:
    # clean p = (3/4, 1/4), attacked q = (1/2, 1/2), y = 0:
    # CE = log(4/3) = 0.287682; KL(p || q) = 3/4 log(3/2) + 1/4 log(1/2) = 0.130812
    # 0.287682 + 6 * 0.130812 = 1.072554
    x, x_adv = torch.tensor([[LOG3, 0.0]]), torch.zeros(1, 2)
    loss, out = Trades(beta=6)(identity, x, x_adv, torch.tensor([0]))
    assert loss.tolist() == [pytest.approx(1.072554, abs=1e-5)]
    assert torch.equal(out, x_adv)


def test_trades_is_cross_entropy_where_nothing_moved_or_beta_is_0() -> None:
    x, x_adv, y = random_logits()
    expected = F.cross_entropy(x, y, reduction="none")
    torch.testing.assert_close(Trades()(identity, x, x, y)[0], expected)
    torch.testing.assert_close(Trades(beta=0)(identity, x, x_adv, y)[0], expected)


def test_trades_trains_through_both_passes() -> None:
    x, x_adv, y = random_logits()
    x.requires_grad_(True)
    x_adv.requires_grad_(True)
    torch.autograd.backward(Trades()(identity, x, x_adv, y)[0].sum())
    assert x.grad is not None
    assert x_adv.grad is not None
    # KL's gradient by the attacked logits is q - p
    torch.testing.assert_close(x_adv.grad, 6 * (x_adv.softmax(1) - x.softmax(1)).detach())


def test_mart_is_the_authors() -> None:
    """Their code (YisenWang/MART, mart.py), an image at a time and without its small constants."""
    x, x_adv, y = random_logits()
    loss, out = Mart(beta=5)(identity, x, x_adv, y)
    assert torch.equal(out, x_adv)
    for i in range(len(y)):
        p, q = x[i].double().softmax(0), x_adv[i].double().softmax(0)
        first, second = q.argsort(descending=True)[:2]
        wrong = second if first == y[i] else first
        adversarial = -q[y[i]].log() - (1 - q[wrong]).log()
        robust = (p * (p / q).log()).sum() * (1 - p[y[i]])
        assert loss[i].item() == pytest.approx((adversarial + 5 * robust).item(), rel=1e-5)


def test_mart_of_sure_outputs_is_finite() -> None:
    sure = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]], requires_grad=True)
    loss, _ = Mart()(identity, sure.detach(), sure, torch.tensor([0, 0]))
    torch.autograd.backward(loss.sum())
    assert loss.isfinite().all()
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("loss", [CrossEntropy(), Trades(), Mart()])
def test_bfloat16_outputs_give_a_float32_loss(loss: CrossEntropy | Trades | Mart) -> None:
    x, x_adv, y = random_logits()
    value, out = loss(lambda z: z.bfloat16(), x, x_adv, y)
    assert value.dtype == torch.float32
    assert value.shape == (6,)
    assert out.dtype == torch.float32


def test_gate_balance_is_0_for_equal_shares() -> None:
    assert gate_balance(torch.full((4, 5), 0.2)).item() == pytest.approx(0, abs=1e-6)
    # each image has an expert of its own, all experts have as many: balanced, too
    assert gate_balance(torch.eye(3)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("experts", [2, 5])
def test_gate_balance_is_log_e_where_one_expert_has_all(experts: int) -> None:
    weights = torch.zeros(4, experts)
    weights[:, 1] = 1
    assert gate_balance(weights).item() == pytest.approx(math.log(experts))


def test_gate_balance_by_hand() -> None:
    # the mean is (3/4, 1/4): log 2 + 3/4 log 3/4 + 1/4 log 1/4 = 0.130812
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert gate_balance(weights).item() == pytest.approx(0.130812, abs=1e-6)


def test_gate_balance_pushes_toward_equal_shares() -> None:
    gate = torch.tensor([[30.0, 0.0], [2.0, 0.0]], requires_grad=True)
    torch.autograd.backward(gate_balance(gate.softmax(1)))
    assert gate.grad is not None
    assert gate.grad.isfinite().all()
    assert gate.grad[1, 0] > 0 > gate.grad[1, 1]


def test_kinds_are_named() -> None:
    adapter: TypeAdapter[CrossEntropy | Trades | Mart] = TypeAdapter(LossConfig)
    assert adapter.validate_python({"kind": "trades", "beta": 3}) == Trades(beta=3)
    assert adapter.validate_python({"kind": "cross_entropy"}) == CrossEntropy()
    with pytest.raises(ValidationError, match="'cross_entropy', 'trades'"):
        adapter.validate_python({"kind": "kl"})


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "trades", "beta": -1},
        {"kind": "trades", "label_smoothing": 0.1},
        {"kind": "cross_entropy", "label_smoothing": 1},
        {"kind": "cross_entropy", "label_smoothing": -0.1},
    ],
)
def test_refuses(value: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(LossConfig).validate_python(value)


def test_own_losses_are_dealt_out_in_turn_over_the_global_batch() -> None:
    """Three experts, of which each is sure of its own number: image i of the batch is dealt to i
    modulo 3, and whoever begins at the second image deals on."""
    sure = 50.0 * torch.eye(3).expand(5, 3, 3)  # expert e says class e
    y = torch.tensor([0, 1, 2, 1, 1])
    right = torch.tensor([0.0, 0, 0, 50, 0])
    torch.testing.assert_close(own_losses(sure, y, 0), right)
    torch.testing.assert_close(own_losses(sure[1:], y[1:], 1), right[1:])
