"""Experts that share a trunk: as one, and one by one; trained, resumed, stored and judged."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fmoe
from fmoe import assembly, config, model_folder
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.evaluation import evaluate
from fmoe.evaluation.stages import ATTACKS
from fmoe.models import small_maps
from fmoe.models.mixture import BranchedMixture
from fmoe.numerics.precision import Numerics
from fmoe.numerics.sync_batch_norm import synchronize
from fmoe.numerics.worker import Group
from fmoe.storage.folder import Folder
from fmoe.training import joint
from fmoe.training.checks import check_attack
from fmoe.training.crafting import crafting_view
from fmoe.training.expert_store import ExpertStore
from fmoe.training.step_loss import StepLoss
from fmoe.training.trainer import set_trainable, train_mode
from tests.conftest import SMALL
from tests.networks import branched

BRANCHED = [*SMALL, "experts.start=fresh", "experts.trunk={stages: 2}", "gate={kind: features}"]
close = torch.testing.assert_close


def chosen(*more: str) -> Config:
    return config.load("digits-whole", [*BRANCHED, *more])


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(model(x)[:, 3].sum())
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("large", [False, True], ids=["small maps", "large maps"])
@pytest.mark.parametrize("norm", ["plain", "synchronised"])
def test_side_by_side_is_branch_by_branch(training: bool, large: bool, norm: str) -> None:
    """Outputs, gradients and BatchNorm's statistics; one by one is how checkpointing runs them."""
    torch.manual_seed(0)
    together = (branched("cifar", 1) if large else branched()).double().train(training)
    if norm == "synchronised":
        synchronize(together, Group())
    apart = copy.deepcopy(together)
    apart.checkpointing = True
    x = torch.rand(5, 3, 32, 32, dtype=torch.float64)
    close(together(x), apart(x), rtol=1e-9, atol=1e-12)
    ours, theirs = gradients(together, x), gradients(apart, x)
    assert ours.keys() == theirs.keys() == dict(together.named_parameters()).keys()
    for name, gradient in ours.items():
        close(gradient, theirs[name], rtol=1e-7, atol=1e-10, msg=name)
    for (name, ours_b), (_, theirs_b) in zip(
        together.named_buffers(), apart.named_buffers(), strict=True
    ):
        close(ours_b, theirs_b, msg=name)


def test_an_expert_is_a_classifier_of_images() -> None:
    model, x = branched(), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        alone = torch.stack([expert(x) for expert in model.experts], 1)
        log_weights, logits = model.parts(x)
        close(alone, model.expert_logits(x))
        close(alone, logits)
        close(log_weights.exp(), model.gate_weights(x))
        by_hand = (log_weights.exp()[:, :, None] * F.softmax(alone, 2)).sum(1).log()
        close(model(x), by_hand, rtol=1e-4, atol=1e-5)
    assert [expert(x).shape for expert in model.experts] == [(4, 10)] * 3


def test_the_trunk_is_there_once() -> None:
    model = branched(experts=3)
    names = [name for name in model.state_dict() if "conv1.weight" in name]
    assert sum("trunk" in name for name in names) == 6
    assert sum("branches" in name for name in names) == 3 * 2
    settings = chosen()
    state = assembly.seeded_mixture(settings).state_dict()
    like = assembly.mixture_state(settings)
    assert {name: t.shape for name, t in state.items()} == {n: t.shape for n, t in like.items()}
    with pytest.raises(ValueError, match="3 experts have more than 100 tensors"):
        assembly.mixture_state(settings, most=100)


sides = st.integers(1, small_maps.LARGEST_SIDE)


@settings(max_examples=30, deadline=None)
@given(sides, sides, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_products_of_matrices_are_convolutions(
    height: int, width: int, groups: int, channels: int, outputs: int, biased: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(groups * channels, groups * outputs, 3, 1, 1, groups=groups, bias=biased)
    x = torch.rand(3, groups * channels, height, width)
    assert small_maps.is_dense(conv, x)
    made = small_maps.matrices(conv.weight, groups, height, width)
    out = conv(x)
    upward, leaves = torch.rand_like(out), list(conv.parameters())
    own = small_maps.by_matrices(x, made, conv.bias)
    close(own, out)
    expected = torch.autograd.grad(out, leaves, upward)
    for ours, theirs in zip(torch.autograd.grad(own, leaves, upward), expected, strict=True):
        close(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_products_of_windows_are_convolutions(
    height: int, width: int, channels: int, outputs: int, biased: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, outputs, 3, 2, 1, bias=biased)
    x = torch.rand(3, channels, height, width, requires_grad=True)
    assert small_maps.is_of_windows(conv, x)
    out, own = conv(x), small_maps.by_windows(x, conv.weight, conv.bias, 2)
    close(own, out)
    with torch.no_grad():
        close(small_maps.by_windows(x, conv.weight, conv.bias, 2), out)
    upward = torch.rand_like(out)
    leaves = [x, *conv.parameters()]
    expected = torch.autograd.grad(out, leaves, upward)
    for ours, theirs in zip(torch.autograd.grad(own, leaves, upward), expected, strict=True):
        close(ours, theirs, rtol=1e-4, atol=1e-5)
    close(small_maps.input_of_windows(upward, conv.weight, x, 2), expected[0])


def test_products_have_gradients_of_gradients() -> None:
    """For losses that penalize a gradient."""
    torch.manual_seed(0)
    x, weight = torch.rand(2, 2, 3, 4, dtype=torch.float64), torch.rand(3, 2, 3, 3).double()
    leaves = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x, w: small_maps.by_windows(x, w, None, 2).square(), leaves
    )
    assert torch.autograd.gradgradcheck(
        lambda w: small_maps.matrices(w, 1, 2, 2).square().sum(0), leaves[1:]
    )


@pytest.mark.parametrize("pixels", [8, 32])
def test_no_images_have_no_answers(pixels: int) -> None:
    """As of whole networks: attack libraries may ask for what is left of a batch."""
    model = assembly.seeded_mixture(chosen()).eval()
    x = torch.rand(0, 1, pixels, pixels)
    assert model(x).shape == (0, 10)
    assert crafting_view(model, Numerics()).module(x).shape == (0, 10)


def test_windows_are_of_autocasts_precision() -> None:
    conv, x = nn.Conv2d(8, 16, 3, 2, 1), torch.rand(3, 8, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, theirs = small_maps.by_windows(x, conv.weight, conv.bias, 2), conv(x)
    assert out.dtype == theirs.dtype == torch.bfloat16
    close(out, theirs, rtol=0.03, atol=0.03)
    torch.autograd.backward(out.float().square().sum())
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32


def test_what_is_large_or_different_is_left_to_the_library() -> None:
    x = torch.rand(1, 4, 3, 2)
    assert not small_maps.is_dense(nn.Conv2d(4, 4, 3, 1, 1), x)
    assert not small_maps.is_dense(nn.Conv2d(4, 4, 3, 2, 1), x[:, :, :2])
    assert not small_maps.is_dense(nn.Conv2d(4, 4, 1), x[:, :, :2])
    assert not small_maps.is_of_windows(nn.Conv2d(4, 4, 3, 2, 1), torch.rand(1, 4, 5, 5))
    assert not small_maps.is_of_windows(nn.Conv2d(4, 4, 3, 2, 1, groups=2), x)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["gate={kind: features}"], "gate.kind: features reads a trunk; set experts.trunk"),
        (["experts.trunk={stages: 2}"], "not trained apart; set start: fresh, or forked"),
        (["experts.branch={blocks: 2}"], "experts without a trunk are whole networks"),
        (["experts.trunk={stages: 4}"], "experts.trunk.stages"),
        (
            ["experts.start=fresh", "experts.trunk={}", "experts.backbone={kind: preact_resnet18}"],
            "preact_resnet18 is not shared; resnet18 is",
        ),
        (
            ["experts.start=fresh", "experts.trunk={}", "experts.roles.pgd.backbone={width: 8}"],
            "roles.pgd.backbone: with a trunk all have the same",
        ),
    ],
)
def test_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        config.load("digits-whole", [*SMALL, *overrides])


def test_a_gate_of_one_size_and_warm_starts_go_with_no_sizes(digits: Data) -> None:
    with pytest.raises(UserError, match=r"gate\.kind: linear reads images of one size"):
        config.load("digits-whole", [*SMALL[:3], "joint.sizes=[4]", "gate={kind: linear}"])
    warm = chosen("joint.sizes=[4]", "joint.warm_start=true", "joint.attack={kind: pgd}")
    with pytest.raises(UserError, match="warm_start: it keeps perturbations of one size"):
        check_attack(warm.joint, warm.joint.attack)


@pytest.mark.parametrize("update", ["heads", "gate"])
def test_the_trunk_and_the_blocks_rest(update: config.Update) -> None:
    model = branched()
    set_trainable(model, update)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"gate.weight", "gate.bias"} <= learning
    heads = {f"body.branches.{i}.head.{part}" for i in range(3) for part in ("weight", "bias")}
    assert learning - {"gate.weight", "gate.bias"} == (heads if update == "heads" else set())
    train_mode(model, update)
    before = [b.clone() for b in model.buffers()]
    model(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


def trained(folder: Path, digits: Data, *, interrupted: bool = False) -> BranchedMixture:
    """From a run whose process ended after its first epoch, or not."""
    settings = chosen("data.train_images=160", "joint.batch_size=32", "joint.sizes=[4, 8]")
    run, store = Folder.at(folder / "run"), ExpertStore(Folder.at(folder / "experts"))
    assert store.obtain_all(settings, digits) == [], "nothing is trained apart"
    for _ in range(2 if interrupted else 1):
        for epoch in joint.joint_epochs(settings, digits, store, run):
            best = epoch.best
            if interrupted and epoch.index == 0:
                break
        interrupted = False
    model = joint.trained(settings, run, digits.identity, best)
    assert isinstance(model, BranchedMixture)
    return model


def test_whole_networks_may_begin_with_the_joint_phase(tmp_path: Path, digits: Data) -> None:
    """As one network does that is trained in one go."""
    one = ["experts.roles={pgd: {count: 1, attack: {kind: pgd}}}", "gate={kind: uniform}"]
    one += ["experts.start=fresh", "joint.epochs=1"]
    settings = config.load("digits-whole", [*SMALL[:3], *one])
    store = ExpertStore(Folder.at(tmp_path / "experts"))
    assert store.obtain_all(settings, digits) == []
    model = joint.initial(settings, store, digits.identity)
    for name, tensor in assembly.seeded_mixture(settings).state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_trained_resumed_stored_and_loaded(tmp_path: Path, digits: Data) -> None:
    model = trained(tmp_path / "a", digits)
    again = trained(tmp_path / "b", digits, interrupted=True)
    for (name, tensor), other in zip(
        model.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    folder = Folder.at(tmp_path / "model")
    model_folder.save_model(folder, model.state_dict(), chosen(), data_digest="", metrics={})
    loaded = fmoe.load(str(tmp_path / "model"))
    x = digits.test.pixels()[:8]
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
        assert torch.equal(loaded.gate_weights(x), model.gate_weights(x))  # type: ignore[operator]
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        close(program.module()(x), model(x))


def test_all_of_the_protocol_judges_it(digits: Data) -> None:
    """All attacks but AutoAttack, on an untrained model: none needs whole networks."""
    model = assembly.seeded_mixture(chosen()).eval()
    few = digits.test[:6]
    names = [attack.name for attack in ATTACKS if attack.name != "autoattack"]
    found = evaluate(model, few.images, few.labels, attacks=names, eps=0.1)
    assert found.skipped == {}
    assert set(found.robust) >= {"pgd", "gate-only", "frozen-gate", "transfer", "reweighted"}


def test_experts_that_the_gate_never_asks_learn_by_their_own_losses() -> None:
    """The gate gives all to the first one; the others' heads have a gradient all the same."""
    for own, learn in ((0.0, 1), (0.5, 3)):
        phase = chosen(f"joint.own={own}", "joint.batch_size=6").joint
        torch.manual_seed(0)
        model = branched()
        nn.init.zeros_(model.gate.weight)  # type: ignore[arg-type]
        model.gate.bias.data = torch.tensor([0.0, -1e4, -1e4])
        x, y = torch.rand(6, 3, 32, 32), torch.arange(6)
        loss, _ = StepLoss(model, phase, Numerics(), world_size=1)(x, x, y)
        loss.backward()
        moved = [head.weight.grad.abs().sum() > 0 for head in model.heads]  # type: ignore[union-attr, operator]
        assert sum(moved) == learn
