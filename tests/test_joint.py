"""Phase two on digits: experts from the store, a new gate, epochs, the model of an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fmoe import assembly, config
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.storage.checkpoint import copy_state
from fmoe.storage.folder import Damaged, Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Epoch, joint
from fmoe.training.expert_store import ExpertStore, expert_key
from tests.conftest import SMALL
from tests.edited import identity


def settings(*overrides: str) -> Config:
    quick = [
        "experts.train.batch_size=32",
        "joint.batch_size=32",
        "joint.epochs=3",
        "experts.train.validation.attack={kind: fgsm, eps: 0.1}",
        "joint.validation.attack={kind: fgsm, eps: 0.1}",
    ]
    return config.load("digits-whole", [*SMALL, *quick, *overrides])


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def store(few: Data, tmp_path_factory: pytest.TempPathFactory) -> ExpertStore:
    """With the three experts of `settings()`."""
    store = ExpertStore(Folder.at(tmp_path_factory.mktemp("experts")))
    for member in settings().experts.members:
        store.obtain(settings(), member, few)
    return store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder.at(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def trained(few: Data, store: ExpertStore, run: Folder) -> list[Epoch]:
    """A finished joint phase in `run`."""
    return list(joint.joint_epochs(settings(), few, store, run))


# before


def test_initial_takes_the_experts_in_order(few: Data, store: ExpertStore) -> None:
    model = joint.initial(settings(), store, few.identity)
    members = settings().experts.members
    assert members == [("benign", 0), ("fgsm", 0), ("pgd", 0)]
    for expert, member in zip(model.experts, members, strict=True):
        weights = store.weights(expert_key(settings(), member, few.identity))
        assert same(copy_state(expert), weights)
    states = [copy_state(expert) for expert in model.experts]
    assert not same(states[0], states[1])
    assert not same(states[1], states[2])


def test_initial_has_the_seeds_gate(few: Data, store: ExpertStore) -> None:
    """Every seed its own gate, whatever torch's generator holds."""
    gates = []
    for global_seed in (0, 1):
        torch.manual_seed(global_seed)
        gates.append(copy_state(joint.initial(settings(), store, few.identity).gate))
    assert same(*gates)
    assert not same(gates[0], copy_state(assembly.seeded_mixture(settings("seed=1")).gate))


def test_initial_needs_every_expert(few: Data, store: ExpertStore) -> None:
    with pytest.raises(Damaged, match="no such expert"):
        joint.initial(settings("experts.roles.pgd.count=2"), store, few.identity)


# the phase


def test_epochs_end_to_end(trained: list[Epoch], few: Data, run: Folder) -> None:
    assert [epoch.index for epoch in trained] == [0, 1, 2]
    for epoch in trained:
        assert {"train_loss", "val_clean", "val_robust", "gate_weight_2"} <= set(epoch.metrics)
        assert 0 <= epoch.metrics["val_robust"] <= 1
    history = [epoch.metrics for epoch in trained]
    assert trained[-1].best == joint.best(settings(), history)
    x = few.test[:8].pixels()
    model = joint.trained(settings(), run, few.identity, trained[-1].best)
    assert not model.training
    with torch.no_grad():
        assert model(x).exp().sum(1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
        assert model.gate_weights(x).shape == (8, 3)


def test_trained_is_the_model_after_that_epoch(
    few: Data, store: ExpertStore, tmp_path: Path
) -> None:
    chosen, folder = settings("joint.epochs=1"), Folder.at(tmp_path)
    list(joint.joint_epochs(chosen, few, store, folder))
    kept = joint.checkpoints(folder, chosen, few.identity).load(0)
    assert same(copy_state(joint.trained(chosen, folder, few.identity, 0)), kept.model)
    assert not same(kept.model, copy_state(joint.initial(chosen, store, few.identity)))


def test_trained_epochs_differ(trained: list[Epoch], few: Data, run: Folder) -> None:
    last, before = (copy_state(joint.trained(settings(), run, few.identity, e)) for e in (2, 1))
    assert not same(last, before)


def test_the_phase_again_yields_the_same_epochs(
    trained: list[Epoch], few: Data, store: ExpertStore, run: Folder
) -> None:
    assert list(joint.joint_epochs(settings(), few, store, run)) == trained


def test_the_store_is_left_as_it_was(trained: list[Epoch], few: Data, store: ExpertStore) -> None:
    members = settings().experts.members
    assert [store.obtain(settings(), m, few)["trained"] for m in members] == [False] * 3


def test_a_run_of_other_settings_is_refused(
    trained: list[Epoch], few: Data, store: ExpertStore, run: Folder
) -> None:
    other = settings("joint.optimizer.lr=0.01")
    with pytest.raises(UserError, match="belongs to other settings"):
        list(joint.joint_epochs(other, few, store, run))
    with pytest.raises(UserError, match="belongs to other settings"):
        joint.trained(other, run, few.identity, 2)


# the key


@pytest.mark.parametrize(
    "override", ["evaluate.eps=0.2", "evaluate.attacks=[pgd50]", "evaluate.images=10"]
)
def test_evaluation_leaves_the_key(override: str) -> None:
    assert joint.joint_key(settings(override), identity()) == joint.joint_key(
        settings(), identity()
    )


@pytest.mark.parametrize(
    "override",
    [
        "gate.temperature=2",
        "gate={kind: linear}",
        "mixing=logits",
        "joint.epochs=4",
        "joint.optimizer.lr=0.01",
        "joint.attack={kind: clean}",
        "joint.update=heads",
        "joint.balance=1",
        "joint.batch_norm=sync",
        "experts.roles.pgd.count=2",
        "experts.train.epochs=2",
        "data.augment.crop=0",
        "precision=bfloat16",
        "seed=1",
    ],
)
def test_what_decides_the_numbers_changes_the_key(override: str) -> None:
    assert joint.joint_key(settings(override), identity()) != joint.joint_key(
        settings(), identity()
    )


def test_the_data_changes_the_key() -> None:
    assert joint.joint_key(settings(), identity("one")) != joint.joint_key(
        settings(), identity("two")
    )
