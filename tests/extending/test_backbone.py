"""A backbone that this file adds: named, stored, trained, resumed, saved, loaded and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

import fmoe
from fmoe import assembly, config, model_folder
from fmoe.config import Config
from fmoe.data import Data
from fmoe.evaluation import evaluate
from fmoe.fast.folding import folded
from fmoe.fast.windowed import Box, Windowed
from fmoe.models import backbones
from fmoe.models.backbones import ResNet18Backbone
from fmoe.models.experts import ResNet18
from fmoe.numerics.precision import Numerics
from fmoe.storage.checkpoint import copy_state
from fmoe.storage.folder import Damaged, Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import joint
from fmoe.training.crafting import crafting_view
from fmoe.training.expert_store import ExpertStore, expert_key
from fmoe.tuning import search_space
from tests.conftest import SMALL
from tests.extending.added import added
from tests.extending.document import section

CODE = section("A backbone")
PlainNet = CODE.PlainNet
Plain = CODE.Plain


@pytest.fixture(autouse=True)
def _added() -> Iterator[None]:
    with added(backbones, "BackboneConfig", Plain):
        yield


QUICK = [
    "experts.train.batch_size=32",
    "joint.batch_size=32",
    "experts.train.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.attack={kind: fgsm, eps: 0.1}",
]
PLAIN = "experts.backbone={kind: plain, depth: 2}"
MIXED = "experts.roles.pgd.backbone={kind: plain, depth: 1}"


def settings(*overrides: str) -> Config:
    return config.load("digits-whole", [*SMALL, *QUICK, *overrides])


@pytest.fixture(scope="module")
def few(digits: Data) -> Data:
    return replace(digits, train=digits.train[:64], val=digits.val[:32], test=digits.test[:20])


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore(Folder.at(tmp_path / "experts"))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# named


def backbone(settings: Config) -> object:
    return settings.plain()["experts"]["backbone"]


def test_a_recipe_an_override_and_a_space_name_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("experts: {backbone: {kind: plain, depth: 5}}\n")
    assert backbone(config.load(str(tmp_path / "mine.yaml"))) == {"kind": "plain", "depth": 5}
    override = ["experts.backbone.kind=plain", "experts.backbone.depth=4"]
    loaded = config.load("digits-whole", override)
    assert backbone(loaded) == {"kind": "plain", "depth": 4}  # ResNet-18's width is gone
    assert Config.model_validate(loaded.plain()) == loaded
    space = {
        "experts.backbone.kind": {"choice": ["plain", "resnet18"]},
        "experts.backbone.depth": {"choice": [1, 2], "when": {"experts.backbone.kind": "plain"}},
    }
    (tmp_path / "space.yaml").write_text(
        yaml.safe_dump({"recipe": "digits-whole", "space": space}, sort_keys=False)
    )
    drawn = [c.experts.backbone for c in search_space.load(str(tmp_path / "space.yaml")).samples]
    assert {b.model_dump_json() for b in drawn} == {
        Plain(depth=1).model_dump_json(),
        Plain(depth=2).model_dump_json(),
        ResNet18Backbone(width=8).model_dump_json(),
    }


# in the store


def test_two_depths_are_two_experts(few: Data, store: ExpertStore) -> None:
    """A key made of the fields that somebody thought of would be the same for both."""
    member = ("benign", 0)
    two, three = settings(PLAIN), settings("experts.backbone={kind: plain, depth: 3}")
    keys = [expert_key(chosen, member, few.identity) for chosen in (two, three)]
    made = [store.obtain(chosen, member, few) for chosen in (two, three)]
    assert [manifest["trained"] for manifest in made] == [True, True]
    assert [manifest["key"] for manifest in made] == keys
    assert len(set(keys)) == 2
    assert store.obtain(two, member, few)["trained"] is False
    for chosen, key in zip((two, three), keys, strict=True):
        like = assembly.expert_state(chosen, member)
        assembly.expert(chosen, member).load_state_dict(store.weights(key, like))
    with pytest.raises(Damaged, match="does not fit"):
        store.weights(keys[0], assembly.expert_state(three, member))


def test_a_role_of_its_own_backbone_shares_the_others_experts(
    few: Data, store: ExpertStore
) -> None:
    store.obtain_all(settings(), few)
    again = store.obtain_all(settings(MIXED), few)
    assert [manifest["trained"] for manifest in again] == [False, False, True]


# trained, resumed, saved, loaded, judged


@pytest.mark.parametrize("chosen", [(PLAIN,), (MIXED,)], ids=["all", "one role"])
def test_through_both_phases_and_out(
    chosen: tuple[str], few: Data, store: ExpertStore, tmp_path: Path
) -> None:
    made = settings(*chosen)
    store.obtain_all(made, few)
    whole, stopped = Folder.at(tmp_path / "whole"), Folder.at(tmp_path / "stopped")
    epochs = list(joint.joint_epochs(made, few, store, whole))
    (first,) = islice(joint.joint_epochs(made, few, store, stopped), 1)
    assert first.index == 0
    resumed = list(joint.joint_epochs(made, few, store, stopped))
    assert len(resumed) == len(epochs) == 2
    model = joint.trained(made, whole, few.identity, 1)
    assert same(copy_state(model), copy_state(joint.trained(made, stopped, few.identity, 1)))
    assert not same(copy_state(model), copy_state(joint.initial(made, store, few.identity)))
    nets = [PlainNet] * 3 if chosen == (PLAIN,) else [ResNet18, ResNet18, PlainNet]
    assert [type(expert) for expert in model.experts] == nets

    folder = tmp_path / "model"
    model_folder.save_model(
        Folder.at(folder), model.state_dict(), made, data_digest=few.digest, metrics={}
    )
    loaded, x = fmoe.load(str(folder)), few.test.pixels()
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    found = evaluate(loaded, few.test.images, few.test.labels, eps=0.1, attacks=("fgsm", "mixture"))
    assert found.images == 20
    assert found.worst_case <= found.clean


def test_heads_alone_are_trained(few: Data, store: ExpertStore, tmp_path: Path) -> None:
    made = settings(MIXED, "joint.update=heads", "joint.epochs=1")
    store.obtain_all(made, few)
    before = copy_state(joint.initial(made, store, few.identity))
    list(joint.joint_epochs(made, few, store, Folder.at(tmp_path / "run")))
    after = copy_state(joint.trained(made, Folder.at(tmp_path / "run"), few.identity, 0))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved, "nothing was trained"
    assert {name for name in moved if name.startswith("experts.")} == {
        f"experts.{i}.head.{part}" for i in range(3) for part in ("weight", "bias")
    }


# the fast paths


def test_fast_paths_give_the_networks_own_numbers(few: Data) -> None:
    model, x = assembly.seeded_mixture(settings(MIXED)).eval(), few.test.pixels()
    plain_x, fast_x = (x.clone().requires_grad_(True) for _ in range(2))
    expected, crafted = model(plain_x), crafting_view(model, Numerics()).module(fast_x)
    torch.testing.assert_close(crafted, expected, rtol=0, atol=1e-4)
    labels = few.test.labels
    wanted, found = (
        torch.autograd.grad(F.nll_loss(out, labels), given)[0]
        for out, given in ((expected, plain_x), (crafted, fast_x))
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)

    windowed, window = Windowed(folded(model)), Box(2, 5, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(windowed.whole(x), model(x), rtol=0, atol=1e-4)
        changed = x.clone()
        window.of(changed).fill_(1)
        said = windowed.changed(window, torch.ones(len(x), 1, 3, 3))
        torch.testing.assert_close(said, model(changed), rtol=0, atol=1e-4)
