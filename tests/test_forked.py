"""Experts that are forked from one network: which is trained once, and what each takes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmoe import assembly, config
from fmoe.config import ORIGIN, Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.models.mixture import BranchedMixture
from fmoe.storage.folder import Folder
from fmoe.training import joint
from fmoe.training.expert_store import ExpertStore, expert_key
from tests.conftest import SMALL
from tests.edited import identity

QUICK = [
    *("experts.start=forked", "experts.train.batch_size=32", "joint.batch_size=32"),
    "experts.train.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
]
TRUNK = ["experts.trunk={stages: 2}", "experts.branch={width: 4}", "gate={kind: features}"]


def settings(*overrides: str) -> Config:
    return config.load("digits-whole", [*SMALL, *QUICK, *overrides])


@pytest.fixture(scope="module")
def store(few: Data, tmp_path_factory: pytest.TempPathFactory) -> ExpertStore:
    store = ExpertStore(Folder.at(tmp_path_factory.mktemp("experts")))
    (manifest,) = store.obtain_all(settings(), few)
    assert (manifest["role"], manifest["index"], manifest["trained"]) == (*ORIGIN, True)
    return store


def origin(store: ExpertStore, few: Data) -> dict[str, torch.Tensor]:
    return store.weights(expert_key(settings(), ORIGIN, few.identity))


def test_whole_networks_are_its_copies(store: ExpertStore, few: Data) -> None:
    model, state = joint.initial(settings(), store, few.identity), origin(store, few)
    assert len(model.experts) == 3
    for expert in model.experts:
        own = expert.state_dict()
        assert own.keys() == state.keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in state.items())


def test_a_trunk_is_its_first_stages_and_branches_are_fresh(store: ExpertStore, few: Data) -> None:
    """One that is there is not trained again for another trunk."""
    chosen = settings(*TRUNK)
    (manifest,) = store.obtain_all(chosen, few)
    assert not manifest["trained"]
    model, state = joint.initial(chosen, store, few.identity), origin(store, few)
    assert isinstance(model, BranchedMixture)
    trunk = model.body.trunk.state_dict()
    assert len(trunk) > 10
    assert all(torch.equal(tensor, state[name]) for name, tensor in trunk.items())
    fresh = assembly.seeded_mixture(chosen).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith("body.trunk."):
            assert torch.equal(tensor, fresh[name]), name
    one, other = (branch.head.weight for branch in model.body.branches[:2])
    assert not torch.equal(one, other)


def test_the_joint_phase_goes_on_from_it(store: ExpertStore, few: Data, tmp_path: Path) -> None:
    chosen = settings(*TRUNK)
    run = Folder.at(tmp_path)
    epochs = list(joint.joint_epochs(chosen, few, store, run))
    assert len(epochs) == 2
    before = joint.initial(chosen, store, few.identity).state_dict()
    after = joint.trained(chosen, run, few.identity, 1).state_dict()
    name = "body.trunk.conv.weight"
    assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("experts.trunk={stages: 1}", True),
        ("experts.roles.fgsm.count=4", True),
        ("experts.roles.pgd.attack.eps=0.2", True),
        ("joint.epochs=5", True),
        ("experts.origin={kind: fgsm, eps: 0.1}", False),
        ("experts.train.epochs=3", False),
        ("experts.backbone.width=8", False),
        ("seed=1", False),
    ],
)
def test_what_it_depends_on(override: str, same: bool) -> None:
    other = settings(override)
    assert (
        expert_key(other, ORIGIN, identity()) == expert_key(settings(), ORIGIN, identity())
    ) is same


def test_it_is_trained_against_what_is_asked_for(few: Data, tmp_path: Path) -> None:
    chosen = settings("experts.origin={kind: pgd, eps: 0.1, steps: 2}")
    apart = ExpertStore(Folder.at(tmp_path))
    (manifest,), (by_clean,) = apart.obtain_all(chosen, few), apart.obtain_all(settings(), few)
    assert manifest["settings"]["role"]["attack"]["kind"] == "pgd"
    assert manifest["history"][0]["train_loss"] != by_clean["history"][0]["train_loss"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["experts.roles.pgd.backbone={width: 8}"], "roles.pgd.backbone: forked from one network"),
        (["experts.roles={origin: {count: 2}}"], "roles.origin: is what experts are forked from"),
        (["experts.start=cloned"], "'pretrained', 'forked' or 'fresh'"),
    ],
)
def test_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(*overrides)
