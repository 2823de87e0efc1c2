"""PreActResNet-18: its size, the paper's equations, and the whole way as experts' backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from fmoe import assembly, config
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.fast.folding import folded
from fmoe.fast.windowed import Box, Windowed
from fmoe.models.backbones import PreActResNet18Backbone, ResNet18Backbone
from fmoe.models.experts import PreActResNet18, ResNet18
from fmoe.numerics.precision import Numerics
from fmoe.storage.checkpoint import copy_state
from fmoe.storage.folder import Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import joint
from fmoe.training.crafting import crafting_view
from fmoe.training.expert_store import ExpertStore
from fmoe.tuning import search_space
from tests.extending.whole_way import few, joint_phase, settings, whole_way
from tests.networks import MEAN, STD, settled

ALL = "experts.backbone={kind: preact_resnet18, width: 4}"
ONE_ROLE = "experts.roles.fgsm.backbone={kind: preact_resnet18, width: 4}"


def built(shape: tuple[int, int, int] = (3, 32, 32), width: int = 4) -> nn.Module:
    backbone = PreActResNet18Backbone(width=width)
    return backbone.build(shape=shape, mean=MEAN[: shape[0]], std=STD[: shape[0]], classes=10)


# the network


def test_width_64_has_the_parameters_counted_by_hand() -> None:
    # a block: a norm of what comes in, 3x3, a norm, 3x3; and a 1x1 where the shape changes
    stem = 3 * 64 * 9
    stages = [
        2 * (128 + 36_864 + 128 + 36_864),
        (128 + 73_728 + 256 + 147_456 + 8192) + (256 + 147_456 + 256 + 147_456),
        (256 + 294_912 + 512 + 589_824 + 32_768) + (512 + 589_824 + 512 + 589_824),
        (512 + 1_179_648 + 1024 + 2_359_296 + 131_072) + (1024 + 2_359_296 + 1024 + 2_359_296),
    ]
    norm, head = 1024, 512 * 10 + 10
    assert stages == [147_968, 525_184, 2_098_944, 8_392_192]
    assert stem + sum(stages) + norm + head == 11_172_170
    assert sum(p.numel() for p in built(width=64).parameters()) == 11_172_170


def activated(state: Tensors, norm: str, x: Tensor, training: bool) -> Tensor:
    """max(0, gamma (x - mu) / sqrt(sigma^2 + eps) + beta), of the batch or as it was kept."""
    mean, var = (
        (x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0))
        if training
        else (state[f"{norm}.running_mean"], state[f"{norm}.running_var"])
    )
    gamma, beta = state[f"{norm}.weight"], state[f"{norm}.bias"]
    mean, var, gamma, beta = (tensor.view(1, -1, 1, 1) for tensor in (mean, var, gamma, beta))
    return (gamma * (x - mean) / (var + 1e-5).sqrt() + beta).clamp(min=0)


def by_the_equations(state: Tensors, x: Tensor, training: bool) -> Tensor:
    """x_{l+1} = h(x_l) + W2 f(W1 f(x_l)), f BatchNorm and ReLU; h is the identity, or W f(x_l)."""
    mean, std = (torch.tensor(values).double().view(1, -1, 1, 1) for values in (MEAN, STD))
    x = F.conv2d((x - mean) / std, state["conv.weight"], padding=1)
    for i, stride in enumerate((1, 1, 2, 1, 2, 1, 2, 1)):
        block = f"blocks.{i}"
        f = activated(state, f"{block}.bn1", x, training)
        inner = F.conv2d(f, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        inner = activated(state, f"{block}.bn2", inner, training)
        if stride == 2:
            x = F.conv2d(f, state[f"{block}.downsample.weight"], stride=2)
        x = x + F.conv2d(inner, state[f"{block}.conv2.weight"], padding=1)
    pooled = activated(state, "bn", x, training).flatten(2).mean(2)
    return pooled @ state["head.weight"].T + state["head.bias"]


@pytest.mark.parametrize("training", [False, True], ids=["evaluated", "trained"])
@pytest.mark.parametrize("side", [32, 17])
def test_logits_are_the_equations(training: bool, side: int) -> None:
    torch.manual_seed(0)
    network, x = settled(built()).double().train(training), torch.rand(5, 3, side, side).double()
    expected = by_the_equations(copy_state(network), x, training)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-9)


# named


def test_a_recipe_names_it_and_refuses_what_it_does_not_have() -> None:
    loaded = config.load("digits-whole", ["experts.backbone={kind: preact_resnet18}"])
    assert loaded.experts.backbone == PreActResNet18Backbone(width=64)
    assert Config.model_validate(loaded.plain()) == loaded
    of_kind = config.load("digits-whole", ["experts.backbone.kind=preact_resnet18"])
    assert of_kind.experts.backbone == PreActResNet18Backbone(width=8), "the recipe's width"
    with pytest.raises(UserError, match=r"unknown key stem \(allowed: kind, width\)"):
        config.load("digits-whole", ["experts.backbone={kind: preact_resnet18, stem: patch}"])
    with pytest.raises(UserError, match=r"experts\.backbone\.width: "):
        config.load("digits-whole", ["experts.backbone={kind: preact_resnet18, width: 0}"])


def test_a_space_draws_it(tmp_path: Path) -> None:
    space = {
        "experts.backbone.kind": {"choice": ["resnet18", "preact_resnet18"]},
        "experts.backbone.width": {"choice": [4, 6]},
    }
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump({"recipe": "digits-whole", "space": space}, sort_keys=False))
    drawn = [sample.experts.backbone for sample in search_space.load(str(file)).samples]
    assert {backbone.model_dump_json() for backbone in drawn} == {
        backbone.model_dump_json()
        for width in (4, 6)
        for backbone in (ResNet18Backbone(width=width), PreActResNet18Backbone(width=width))
    }


# trained, resumed, saved, loaded, evaluated


@pytest.mark.parametrize(
    ("override", "networks"),
    [(ALL, [PreActResNet18, PreActResNet18]), (ONE_ROLE, [ResNet18, PreActResNet18])],
    ids=["all", "one role"],
)
def test_the_whole_way(override: str, networks: list[type], digits: Data, tmp_path: Path) -> None:
    loaded, found = whole_way(settings(override), few(digits), tmp_path)
    assert [type(expert) for expert in loaded.experts] == networks
    assert found.worst_case <= found.clean


def test_heads_alone_are_trained(digits: Data, tmp_path: Path) -> None:
    made, data = settings(ALL, "joint.update=heads"), few(digits)
    joint_phase(made, data, tmp_path)
    run, store = Folder.at(tmp_path / "run"), ExpertStore(Folder.at(tmp_path / "experts"))
    before = copy_state(joint.initial(made, store, data.identity))
    after = copy_state(joint.trained(made, run, data.identity, 2))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if name.startswith("experts.")} == {
        f"experts.{i}.head.{part}" for i in range(2) for part in ("weight", "bias")
    }


# the fast paths


@pytest.fixture
def mixture() -> nn.Module:
    torch.manual_seed(0)
    return settled(assembly.seeded_mixture(settings(ONE_ROLE)))


def test_the_crafting_view_gives_its_own_numbers(mixture: nn.Module, digits: Data) -> None:
    part = digits.test[:16]
    own_x, fast_x = (part.pixels().requires_grad_(True) for _ in range(2))
    own, fast = mixture(own_x), crafting_view(mixture, Numerics()).module(fast_x)
    torch.testing.assert_close(fast, own, rtol=0, atol=1e-4)
    wanted, found = (
        torch.autograd.grad(F.nll_loss(out, part.labels), given)[0]
        for out, given in ((own, own_x), (fast, fast_x))
    )
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_crafting_view_follows_in_bfloat16(mixture: nn.Module, digits: Data) -> None:
    numerics, x = Numerics("bfloat16"), digits.test[:16].pixels()
    view = crafting_view(mixture, numerics)
    settled(mixture)
    view.refresh()
    with numerics.autocast(x.device), torch.no_grad():
        torch.testing.assert_close(view.module(x), mixture(x), rtol=0, atol=0.02)


def test_folded_and_by_windows_it_gives_its_own_numbers(mixture: nn.Module, digits: Data) -> None:
    x, window = digits.test[:16].pixels(), Box(2, 5, 3, 6)
    fast = folded(mixture)
    windowed = Windowed(fast)
    changed = x.clone()
    window.of(changed).fill_(1)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), mixture(x), rtol=0, atol=1e-4)
        torch.testing.assert_close(windowed.whole(x), mixture(x), rtol=0, atol=1e-4)
        said = windowed.changed(window, torch.ones(len(x), 1, 3, 3))
        torch.testing.assert_close(said, mixture(changed), rtol=0, atol=1e-4)
