"""Networks with their input gradient written out against autograd on the same folded networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fmoe.attacks import PGD
from fmoe.data import Data
from fmoe.fast.folding import Twin, folded
from fmoe.fast.written_out import WrittenOut, WrittenOutBranches, fusing, written_out
from fmoe.numerics.draw import Draw
from fmoe.numerics.precision import Numerics
from fmoe.training.crafting import crafting_view
from tests.networks import MODELS, learnt

EXACT = {
    torch.float64: partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12),  # torch's operators
    torch.float32: partial(torch.testing.assert_close, rtol=1e-3, atol=1e-6),  # oneDNN's
}


GENERIC = ("imagenet", "branches, max-pool")
"""Which are not known from inside, in whole or in part."""


def asked(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of one class's."""
    leaf = x.clone().requires_grad_(True)
    outputs: Tensor = model(leaf)
    return outputs.detach(), torch.autograd.grad(outputs[:, 3].sum(), leaf)[0]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in GENERIC])
def test_same_outputs_and_gradients(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    plain = folded(MODELS[name]()).to(dtype)
    fast = written_out(copy.deepcopy(plain))
    assert any(isinstance(m, WrittenOut | WrittenOutBranches) for m in fast.modules())
    x = torch.rand(6, 3, 32, 32, dtype=dtype)
    for ours, theirs in zip(asked(fast, x), asked(plain, x), strict=True):
        assert theirs.abs().max() > 0
        EXACT[dtype](ours, theirs)
    with torch.no_grad():
        EXACT[dtype](fast(x), plain(x))


@pytest.mark.parametrize("name", GENERIC)
def test_what_has_a_pool_goes_the_generic_way(name: str) -> None:
    torch.manual_seed(1)
    plain = folded(MODELS[name]())
    fast, x = written_out(copy.deepcopy(plain)), torch.rand(6, 3, 32, 32)
    assert not any(isinstance(m, WrittenOut | WrittenOutBranches) for m in fast.modules())
    for ours, theirs in zip(asked(fast, x), asked(plain, x), strict=True):
        EXACT[torch.float32](ours, theirs)


def test_several_passes_before_their_gradients() -> None:
    """Restarts and warm starts keep passes apart: none writes over another's activations."""
    torch.manual_seed(2)
    fast, x = written_out(folded(MODELS["mixture"]())), torch.rand(2, 4, 3, 32, 32)
    leaves = [part.clone().requires_grad_(True) for part in x]
    sums = [fast(leaf)[:, 0].sum() for leaf in leaves]
    for leaf, total, part in zip(leaves, sums, x, strict=True):
        (gradient,) = torch.autograd.grad(total, leaf)
        alone = part.clone().requires_grad_(True)
        assert torch.equal(gradient, torch.autograd.grad(fast(alone)[:, 0].sum(), alone)[0])


def test_what_is_not_known_from_inside_is_left() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    assert written_out(other) is other
    unfolded = MODELS["network"]()
    assert written_out(unfolded) is unfolded


def test_it_follows_the_training(digits: Data) -> None:
    model = learnt(digits, width=4, steps=2)
    view, x = crafting_view(model, Numerics()), digits.test.pixels()[:8]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        assert not torch.allclose(view.module(x), model(x), atol=1e-3)
        view.refresh()
        torch.testing.assert_close(view.module(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "view_of",
    [crafting_view, lambda net, numerics: Twin(net, numerics.weights)],
    ids=["written out", "twin"],
)
def test_bfloat16_weakens_no_attack(
    digits: Data, view_of: Callable[[nn.Module, Numerics], Twin]
) -> None:
    """The loss reached on the float32 network, by images made on either; GPUs have the twin."""
    net = learnt(digits, width=8, steps=80)
    x, y = digits.test.pixels()[:200], digits.test.labels[:200]
    numerics = Numerics("bfloat16")
    view = view_of(net, numerics)

    def cheap(images: Tensor) -> Tensor:
        with numerics.autocast(images.device):
            out: Tensor = view.module(images)
        return out

    assert cheap(x).dtype == torch.bfloat16
    attack, losses, right = PGD(eps=0.05, steps=10), [], []
    for model in (net, cheap):
        x_adv = attack(model, x, y, draw=Draw(0))
        with torch.no_grad():
            logits = net(x_adv)
        losses.append(F.cross_entropy(logits, y).item())
        right.append((logits.argmax(1) == y).double().mean().item())
    assert losses[1] > 0.98 * losses[0]
    assert abs(right[1] - right[0]) <= 0.015


def test_double_precision_is_left_to_torch() -> None:
    assert not fusing(torch.float64)
