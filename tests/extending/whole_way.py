"""The whole way of a configuration, in one process: what a kind that is added is taken through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import fmoe
from fmoe import assembly, config, model_folder
from fmoe.config import Config
from fmoe.data import Data
from fmoe.evaluation import Evaluation, evaluate
from fmoe.models.mixture import Mixture
from fmoe.storage.checkpoint import Checkpoint, Checkpoints, copy_state
from fmoe.storage.folder import Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Epoch, joint
from fmoe.training.expert_store import ExpertStore
from tests.conftest import SMALL

QUICK = [
    *SMALL,
    "experts.roles.pgd.count=0",
    "experts.train.batch_size=32",
    "experts.train.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.epochs=3",
    "joint.batch_size=32",
    "joint.attack={kind: fgsm, eps: 0.1}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
]


def settings(*overrides: str) -> Config:
    """Two experts of an epoch, three joint epochs of two steps each."""
    return config.load("digits-whole", [*QUICK, *overrides])


def few(digits: Data) -> Data:
    return replace(digits, train=digits.train[:64], val=digits.val[:32])


def different(one: Tensors, other: Tensors) -> list[str]:
    """Names of tensors that are not the same bits."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def joint_phase(
    chosen: Config, data: Data, folder: Path, *, experts: Path | None = None, stops: bool = False
) -> tuple[list[Epoch], Checkpoints]:
    """Mixture in `folder`, as are its experts where no other place is named; where it stops, after
    the first epoch and again."""
    store = ExpertStore(Folder.at(experts or folder / "experts"))
    run = Folder.at(folder / "run")
    store.obtain_all(chosen, data)
    if stops:
        next(iter(joint.joint_epochs(chosen, data, store, run)))
    epochs = list(joint.joint_epochs(chosen, data, store, run))
    return epochs, joint.checkpoints(run, chosen, data.identity)


def latest(kept: Checkpoints) -> Checkpoint:
    found = kept.latest()
    assert found is not None
    return found


def resumed(chosen: Config, data: Data, folder: Path) -> tuple[list[Epoch], Checkpoints]:
    """A joint phase that stopped and went on, with the bits of one that did not."""
    experts = folder / "experts"
    _, whole = joint_phase(chosen, data, folder / "whole", experts=experts)
    epochs, parts = joint_phase(chosen, data, folder / "parts", experts=experts, stops=True)
    one, other = latest(whole).families, latest(parts).families
    assert one.keys() == other.keys()
    assert {family: different(one[family], other[family]) for family in one} == {
        family: [] for family in one
    }
    return epochs, parts


def whole_way(chosen: Config, data: Data, folder: Path) -> tuple[Mixture, Evaluation]:
    """Trained, resumed, saved, loaded, evaluated: the loaded mixture and its figures."""
    epochs, _ = resumed(chosen, data, folder)
    best = joint.best(chosen, [epoch.metrics for epoch in epochs])
    run = Folder.at(folder / "parts" / "run")
    trained = joint.trained(chosen, run, data.identity, best)
    saved = folder / "model"
    model_folder.save_model(
        Folder.at(saved), trained.state_dict(), chosen, data_digest=data.digest, metrics={}
    )
    loaded = fmoe.load(str(saved))
    assert isinstance(loaded, Mixture)
    assert different(copy_state(loaded), copy_state(trained)) == []
    assert different(copy_state(loaded), copy_state(assembly.seeded_mixture(chosen))) != []
    test = data.test[:16]
    found = evaluate(loaded, test.images, test.labels, attacks=["fgsm"], eps=0.1)
    assert found.images == 16
    return loaded, found
