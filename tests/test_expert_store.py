"""The content-addressed store of pre-trained experts: the key, and that work is done once."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from fmoe import assembly, config, data
from fmoe.config import Config
from fmoe.data import Data
from fmoe.model_folder import WEIGHTS
from fmoe.storage.checkpoint import Checkpoints
from fmoe.storage.folder import MANIFEST, Damaged, Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import Epoch
from fmoe.training.expert_store import ExpertStore, expert_key, expert_seed
from tests.conftest import SMALL
from tests.edited import identity

MEMBER = ("fgsm", 0)


def settings(*overrides: str) -> Config:
    quick = ["experts.train.batch_size=32", "experts.train.validation.attack={kind: fgsm}"]
    return config.load("digits-whole", [*SMALL, *quick, *overrides])


def few(digits: Data) -> Data:
    return replace(digits, train=digits.train[:64], val=digits.val[:32])


def key(*overrides: str, digest: str = "digest", member: tuple[str, int] = MEMBER) -> str:
    return expert_key(settings(*overrides), member, identity(digest))


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture
def store(tmp_path: Path) -> ExpertStore:
    return ExpertStore(Folder.at(tmp_path / "experts"))


# the key


@pytest.mark.parametrize(
    "override",
    [
        "experts.roles.fgsm.attack.eps=0.05",
        "experts.roles.fgsm.attack.random_start=true",
        "experts.roles.fgsm.attack={kind: pgd}",
        "experts.backbone.width=5",
        "experts.train.epochs=2",
        "experts.train.batch_size=16",
        "experts.train.optimizer.lr=0.05",
        "experts.train.optimizer.schedule={kind: constant}",
        "experts.train.loss={kind: trades}",
        "experts.train.patience=1",
        "experts.train.crafting=train",
        "experts.train.validation.images=16",
        "data.augment.crop=0",
        "data.val_images=100",
        "seed=1",
        "precision=bfloat16",
    ],
)
def test_what_decides_the_weights_changes_the_key(override: str) -> None:
    assert key(override) != key()


def test_the_data_changes_the_key() -> None:
    assert key(digest="another") != key()


def test_role_and_index_change_the_key() -> None:
    two = "experts.roles={a: {count: 2}, b: {count: 1}}"
    keys = {key(two, member=member) for member in (("a", 0), ("a", 1), ("b", 0))}
    seeds = {expert_seed(settings(two), member) for member in (("a", 0), ("a", 1), ("b", 0))}
    assert len(keys) == len(seeds) == 3


@pytest.mark.parametrize(
    "override",
    [
        "experts.roles.pgd.count=4",
        "experts.roles.fgsm.count=4",  # its own siblings
        "experts.roles.benign.count=0",
        "experts.roles.pgd.attack.steps=3",
        "experts.roles.more={count: 2}",
        "gate={kind: uniform}",
        "gate.temperature=2",
        "mixing=logits",
        "joint.epochs=7",
        "joint.optimizer.lr=0.5",
        "joint.update=gate",
        "joint.batch_norm=sync",
        "evaluate.eps=0.2",
    ],
)
def test_what_others_do_leaves_the_key(override: str) -> None:
    assert key(override) == key()


@examples(max_examples=25, deadline=None)
@given(
    benign=st.integers(0, 64),
    own=st.integers(1, 64),
    pgd=st.integers(0, 64),
    temperature=st.floats(0.1, 100),
    gate=st.sampled_from(["conv", "resnet", "linear", "uniform", "top1"]),
    epochs=st.integers(1, 100),
    balance=st.floats(0, 10),
)
def test_the_key_is_the_experts_own(
    benign: int, own: int, pgd: int, temperature: float, gate: str, epochs: int, balance: float
) -> None:
    """Any ensemble and any joint phase share the expert."""
    overrides = [
        f"experts.roles.benign.count={benign}",
        f"experts.roles.fgsm.count={own}",
        f"experts.roles.pgd.count={pgd}",
        f"gate={{kind: {gate}, temperature: {temperature}}}",
        f"joint.epochs={epochs}",
        f"joint.balance={balance}",
    ]
    assert key(*overrides) == key()


def test_the_key_is_a_plain_folder_name() -> None:
    assert len(key()) == 32
    assert set(key()) <= set("0123456789abcdef")


# obtaining


def test_an_expert_is_trained_once(digits: Data, store: ExpertStore) -> None:
    chosen, told = settings("experts.train.epochs=2"), list[Epoch]()
    first = store.obtain(chosen, MEMBER, few(digits), on_epoch=told.append)
    weights = store.weights(first["key"])
    again = store.obtain(chosen, MEMBER, few(digits), on_epoch=told.append)
    assert (first.pop("trained"), again.pop("trained")) == (True, False)
    assert first == again
    assert same(weights, store.weights(first["key"]))
    assert [epoch.index for epoch in told] == [0, 1]  # the second time nothing was trained
    assert first["key"] == expert_key(chosen, MEMBER, digits.identity)
    assert first["history"] == [epoch.metrics for epoch in told]
    assert first["best_epoch"] == told[-1].best


def test_any_ensemble_finds_it(digits: Data, store: ExpertStore) -> None:
    store.obtain(settings(), MEMBER, few(digits))
    other = settings("experts.roles.pgd.count=0", "gate.temperature=3", "joint.epochs=9")
    assert store.obtain(other, MEMBER, few(digits))["trained"] is False


def test_two_stores_train_the_same_bits(digits: Data, tmp_path: Path) -> None:
    stores = [ExpertStore(Folder.at(tmp_path / name)) for name in ("one", "two")]
    weights = []
    for seed, store in enumerate(stores):
        torch.manual_seed(seed)
        weights.append(store.weights(store.obtain(settings(), MEMBER, few(digits))["key"]))
    assert same(*weights)


def test_members_of_a_role_differ(digits: Data, store: ExpertStore) -> None:
    chosen = settings("experts.roles.fgsm.count=2")
    made = [store.obtain(chosen, ("fgsm", i), few(digits)) for i in range(2)]
    assert [manifest["trained"] for manifest in made] == [True, True]
    assert not same(*(store.weights(manifest["key"]) for manifest in made))


def test_the_weights_are_those_of_the_best_epoch(
    digits: Data, store: ExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.1, 0.9, 0.2, 0.3])

    def validate(*given: object) -> dict[str, float]:
        robust = next(scores)
        return {"val_clean": 0.5, "val_robust": robust, "val_fgsm": robust}

    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", validate)
    chosen = settings("experts.train.epochs=4")
    name = expert_key(chosen, MEMBER, digits.identity)
    checkpoints = Checkpoints(store.folder / name / "epochs", name)
    kept: list[Tensors] = []

    def keep(epoch: Epoch) -> None:
        kept.append(checkpoints.load(epoch.index).model)

    manifest = store.obtain(chosen, MEMBER, few(digits), on_epoch=keep)
    assert manifest["best_epoch"] == 1
    assert same(store.weights(manifest["key"]), kept[1])


def test_checkpoints_are_gone_when_it_is_done(digits: Data, store: ExpertStore) -> None:
    manifest = store.obtain(settings(), MEMBER, few(digits))
    assert (store.folder / manifest["key"]).names() == [MANIFEST, WEIGHTS]


# damage


def path(store: ExpertStore, key: str, name: str) -> Path:
    local = (store.folder / key).local
    assert local is not None
    return local / name


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_damaged_weights_are_trained_again(digits: Data, store: ExpertStore, damage: str) -> None:
    key = store.obtain(settings(), MEMBER, few(digits))["key"]
    weights, file = store.weights(key), path(store, key, WEIGHTS)
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        last = bytes([content[-1] ^ 1]) if damage == "flipped" else b""
        file.write_bytes(content[:-1] + last)
    assert store.find(key) is None
    with pytest.raises(Damaged, match=WEIGHTS):
        store.weights(key)
    assert store.obtain(settings(), MEMBER, few(digits))["trained"] is True
    assert same(store.weights(key), weights)


def test_a_half_written_expert_is_never_read(digits: Data, store: ExpertStore) -> None:
    key = store.obtain(settings(), MEMBER, few(digits))["key"]
    path(store, key, MANIFEST).unlink()  # the weights stand there, whole
    assert store.find(key) is None
    with pytest.raises(Damaged, match="no such expert"):
        store.weights(key)
    assert store.obtain(settings(), MEMBER, few(digits))["trained"] is True


def test_there_is_nothing_in_an_empty_store(store: ExpertStore) -> None:
    assert store.find(key()) is None
    with pytest.raises(Damaged, match="no such expert"):
        store.weights(key())


def test_an_interrupted_training_goes_on(digits: Data, tmp_path: Path) -> None:
    chosen = settings("experts.train.epochs=3")
    whole, stopped = (ExpertStore(Folder.at(tmp_path / name)) for name in ("whole", "stopped"))
    key = whole.obtain(chosen, MEMBER, few(digits))["key"]

    def stop(epoch: Epoch) -> None:
        if epoch.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.obtain(chosen, MEMBER, few(digits), on_epoch=stop)
    assert stopped.find(key) is None

    steps: list[tuple[int, int, int]] = []
    seen: list[int] = []
    manifest = stopped.obtain(
        chosen,
        MEMBER,
        few(digits),
        progress=lambda *given: steps.append(given),
        on_epoch=lambda epoch: seen.append(epoch.index),
    )
    assert manifest["trained"] is True
    assert seen == [0, 1, 2]  # whoever listens hears of every epoch
    assert steps == [(2, 1, 2), (2, 2, 2)]
    assert same(stopped.weights(key), whole.weights(key))


# two at once


def ask(folder: Path, barrier: Barrier) -> None:
    """A process of its own; notes whether it trained."""
    torch.set_num_threads(1)
    digits, store = few(data.load("digits")), ExpertStore(Folder.at(folder))
    barrier.wait()
    manifest = store.obtain(settings("experts.train.epochs=3"), MEMBER, digits)
    name = multiprocessing.current_process().name
    (folder / f"{name}.txt").write_text(f"{manifest['trained']} {manifest['sha256'][WEIGHTS]}")


def test_two_that_ask_at_once_train_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2, timeout=120)
    processes = [
        context.Process(target=ask, args=(tmp_path, barrier), name=name) for name in ("one", "two")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    answers = [(tmp_path / f"{name}.txt").read_text().split() for name in ("one", "two")]
    assert sorted(trained for trained, _ in answers) == ["False", "True"]
    assert answers[0][1] == answers[1][1]


def test_an_expert_fits_the_mixture(digits: Data, store: ExpertStore) -> None:
    manifest = store.obtain(settings(), MEMBER, few(digits))
    model = assembly.expert(settings(), MEMBER)
    model.load_state_dict(store.weights(manifest["key"]))
    assert model.eval()(digits.test[:2].pixels()).shape == (2, 10)
