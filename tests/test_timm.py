"""timm's networks as experts: any that fits the images, its own normalisation, its weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

import fmoe
from fmoe import assembly, config, model_folder
from fmoe.config import Config
from fmoe.data import Data, Split
from fmoe.data.facts import Facts, Identity
from fmoe.errors import UserError
from fmoe.evaluation import evaluate
from fmoe.fast.folding import folded
from fmoe.fast.windowed import Box, Windowed
from fmoe.models import of_timm
from fmoe.models.experts import WideResNet
from fmoe.models.of_timm import Timm, TimmNet
from fmoe.numerics.precision import Numerics
from fmoe.storage.checkpoint import copy_state
from fmoe.storage.folder import Folder
from fmoe.training import joint
from fmoe.training.crafting import crafting_view
from fmoe.training.expert_store import ExpertStore, expert_key
from tests.conftest import SMALL

SHAPE = (3, 32, 32)
FACTS = Facts(shape=SHAPE, classes=("a", "b", "c"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))
CONV, TRANSFORMER = "test_resnet", "test_vit"
BOTH = [
    "data.name=cifar10",
    "experts.roles.benign.backbone={kind: wideresnet, depth: 10, width: 1}",
    f"experts.roles.fgsm.backbone={{kind: timm, name: {CONV}}}",
    f"experts.roles.pgd.backbone={{kind: timm, name: {TRANSFORMER}}}",
]
QUICK = [
    "experts.train.batch_size=8",
    "joint.batch_size=8",
    "experts.train.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.attack={kind: fgsm, eps: 0.1}",
]


def settings(*overrides: str) -> Config:
    return config.load("digits-whole", [*SMALL, *QUICK, *BOTH, *overrides])


def split(count: int, seed: int) -> Split:
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *SHAPE), generator=draw).to(torch.uint8)
    return Split(images, torch.arange(count) % 3)


@pytest.fixture(scope="module")
def few() -> Data:
    identity = Identity(FACTS, "digest", 16)
    return Data(
        "cifar10", split(24, 0), split(16, 1), identity, split(12, 2), "test digest", "digest"
    )


def built(name: str, shape: tuple[int, int, int] = SHAPE, classes: int = 3) -> TimmNet:
    torch.manual_seed(0)
    mean, std = [0.3] * shape[0], [0.2] * shape[0]
    network = Timm(name=name).build(shape=shape, mean=mean, std=std, classes=classes)
    assert isinstance(network, TimmNet)
    return network


def test_its_own_normalisation_and_a_head_of_ours() -> None:
    network, x = built(CONV).eval(), torch.rand(4, *SHAPE)
    about = timm.get_pretrained_cfg(CONV)
    assert about is not None
    mean, std = (torch.tensor(values)[:, None, None] for values in (about.mean, about.std))
    with torch.no_grad():
        expected = network.head(network.body((x - mean) / std))
        torch.testing.assert_close(network(x), expected)
    assert network(x).shape == (4, 3)
    grey = built(CONV, (1, 32, 32))
    assert grey.normalize.mean.flatten().tolist() == pytest.approx([0.3]), "the data set's"


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 48, 64), (1, 32, 16)])
def test_transformers_are_told_the_size(shape: tuple[int, int, int]) -> None:
    assert built(TRANSFORMER, shape)(torch.rand(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet10tt", SHAPE, r"timm has no network resnet10tt; there are resnet10t"),
        ("test_vit.nope", SHAPE, "timm has no network test_vit.nope; there are test_vit.r160"),
        ("test_vit", (1, 8, 8), "timm's test_vit is not for images of 1x8x8"),
        ("test_convnext", (1, 8, 8), "timm's test_convnext is not for images of 1x8x8"),
        ("efficientformer_l1", SHAPE, "timm's efficientformer_l1 is not for images of 3x32x32"),
    ],
)
def test_what_does_not_fit_is_told_before_training(
    name: str, shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught, torch.device("meta"):
        built(name, shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("experts.backbone={kind: timm}", "experts.backbone.name: Field required"),
        ("experts.backbone={kind: timm, name: A/B}", "experts.backbone.name: String should match"),
        ("experts.backbone={kind: timm, name: test_vit, weights: a.pt}", "weights: String should"),
        ("experts.backbone={kind: wideresnet, depth: 12}", "12 is not 6 n . 4, such as 10"),
        ("joint.sizes=[16]", "joint.sizes: a backbone takes images of one size"),
        (
            "experts.start=fresh and experts.trunk={stages: 2}",
            "backbone: with a trunk all",
        ),
    ],
)
def test_impossible_settings(path: str, message: str) -> None:
    overrides = (
        [path] if "trunk" not in path else ["experts.trunk={stages: 2}", "experts.start=fresh"]
    )
    with pytest.raises(UserError, match=message):
        settings(*overrides)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match="backbone: kind: timm: install it, `pip install timm`"):
        built(CONV)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_both_phases_resumed_saved_exported_judged(few: Data, tmp_path: Path) -> None:
    """A WideResNet, a convolutional network of timm's and a transformer in one mixture."""
    made, store = settings(), ExpertStore(Folder.at(tmp_path / "experts"))
    store.obtain_all(made, few)
    whole, stopped = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "stopped")
    assert len(list(joint.joint_epochs(made, few, store, whole))) == 2
    list(islice(joint.joint_epochs(made, few, store, stopped), 1))
    list(joint.joint_epochs(made, few, store, stopped))
    model = joint.trained(made, whole, few.identity, 1)
    assert same(copy_state(model), copy_state(joint.trained(made, stopped, few.identity, 1)))
    assert [type(expert) for expert in model.experts] == [WideResNet, TimmNet, TimmNet]
    save = model_folder.save_model
    save(
        Folder.at(tmp_path / "model"), model.state_dict(), made,
        data_digest="digest", metrics={}, facts=FACTS,
    )  # fmt: skip
    loaded, x = fmoe.load(str(tmp_path / "model")), few.test.pixels()
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(model, (x[:4],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=1e-4)
    found = evaluate(loaded, few.test.images, few.test.labels, eps=0.1, attacks=("fgsm", "mixture"))
    assert found.images == 12
    assert found.worst_case <= found.clean


def test_fast_paths_give_the_networks_own_numbers(few: Data) -> None:
    model, x = assembly.seeded_mixture(settings(), FACTS).eval(), few.test.pixels()
    plain_x, fast_x = (x.clone().requires_grad_(True) for _ in range(2))
    expected, crafted = model(plain_x), crafting_view(model, Numerics()).module(fast_x)
    torch.testing.assert_close(crafted, expected, rtol=0, atol=1e-4)
    wanted, found = (
        torch.autograd.grad(out[:, 1].sum(), given)[0]
        for out, given in ((expected, plain_x), (crafted, fast_x))
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    windowed, window = Windowed(folded(model)), Box(2, 5, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(windowed.whole(x), model(x), rtol=0, atol=1e-4)
        changed = x.clone()
        window.of(changed).fill_(1)
        said = windowed.changed(window, torch.ones(len(x), 3, 3, 3))
        torch.testing.assert_close(said, model(changed), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of timm's own network with five classes, as somebody has fine-tuned it."""
    file = tmp_path_factory.mktemp("weights") / "tuned.safetensors"
    torch.manual_seed(7)
    save_file(timm.create_model(CONV, num_classes=5).state_dict(), file)
    return file


def started(file: Path, classes: int, **options: Any) -> TimmNet:
    spec = Timm(name=CONV, weights=str(file), **options)
    network = spec.build(shape=SHAPE, mean=(0.5,) * 3, std=(0.2,) * 3, classes=classes)
    spec.start(network)
    assert isinstance(network, TimmNet)
    return network


def test_training_begins_with_somebodys_weights(weights: Path) -> None:
    """All of them where the classes are as many; else the last layer is new."""
    torch.manual_seed(7)
    theirs, x = timm.create_model(CONV, num_classes=5).eval(), torch.rand(2, *SHAPE)
    ours = started(weights, 5).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(ours.normalize(x)))
        other = started(weights, 3).eval()
        assert torch.equal(other.body(other.normalize(x)), ours.body(ours.normalize(x)))
    assert other.head.out_features == 3


def test_the_file_is_part_of_the_key_and_need_not_be_there_later(
    weights: Path, few: Data, tmp_path: Path
) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(weights.read_bytes())
    own = f"experts.roles.fgsm.backbone={{kind: timm, name: {CONV}, weights: {file}}}"
    one, drawn = settings(own), settings()
    member = ("fgsm", 0)
    seeded = assembly.seeded_expert(one, member, 0, FACTS)
    assert not same(
        seeded.state_dict(), assembly.seeded_expert(drawn, member, 0, FACTS).state_dict()
    )
    torch.manual_seed(8)
    save_file(timm.create_model(CONV, num_classes=5).state_dict(), file)
    other = settings(own)
    keys = {expert_key(chosen, member, few.identity) for chosen in (one, other, drawn)}
    assert len(keys) == 3
    with pytest.raises(UserError, match=r"its sha256 is not .*: it has changed"):
        assembly.seeded_expert(one, member, 0, FACTS)
    file.unlink()
    again = config.validate(one.plain(), "again")
    assembly.mixture(again, FACTS)
    with pytest.raises(UserError, match=r"weights: .*: no such file"):
        settings(own)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_convnext", num_classes=3).state_dict(), file)
    with pytest.raises(UserError, match="no weights of test_resnet for such images"):
        started(file, 3)
    file.write_bytes(b"x" * 50)
    with pytest.raises(ValidationError, match="not a safetensors file"):
        started(file, 3)


def test_mixtures_of_networks_without_batch_norm() -> None:
    network = built("test_vit")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert replace(FACTS) == FACTS
    assert of_timm.classifiers(network.body) == ("head",)
