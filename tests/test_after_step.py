"""What follows a step, by the moving average of the weights.

It is trained beside the model in both phases, resumed, and deployed where validation prefers it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmoe import assembly, training
from fmoe.after_step import Ema
from fmoe.config import Config, Joint
from fmoe.data import Data
from fmoe.data.augment import Augment
from fmoe.data.batches import Batches
from fmoe.errors import UserError
from fmoe.numerics.precision import Numerics
from fmoe.numerics.worker import Worker
from fmoe.storage.checkpoint import Checkpoint, Checkpoints, copy_state
from fmoe.storage.folder import Damaged, Folder
from fmoe.training import Trainer, joint
from fmoe.training.expert_store import ExpertStore, expert_key
from fmoe.training.validation import validation_accuracies, validation_attacks
from tests.extending.whole_way import different, few, joint_phase, latest, resumed, settings

EMA = "[{kind: ema, decay: 0.5}]"
BOTH = [f"experts.train.after_step={EMA}", f"joint.after_step={EMA}"]
MEMBER = ("fgsm", 0)
HEAD = "head.bias"


def test_nothing_follows_a_step_unless_it_is_named() -> None:
    assert settings().joint.after_step == []
    assert "after_step" in settings().plain()["experts"]["train"]
    with pytest.raises(UserError, match=r"joint\.after_step\.0\.kind: Input should be 'ema'"):
        settings("joint.after_step=[{kind: nosuch}]")


def test_it_is_named_in_an_override() -> None:
    chosen = settings(*BOTH)
    assert chosen.joint.after_step == [Ema(decay=0.5)]
    assert Config.model_validate(chosen.plain()) == chosen
    with pytest.raises(UserError, match=r"joint\.after_step\.0\.decay: .* less than 1"):
        settings("joint.after_step=[{kind: ema, decay: 1}]")
    with pytest.raises(UserError, match=r"joint\.after_step: ema is there more than once"):
        settings("joint.after_step=[{kind: ema}, {kind: ema, decay: 0.5}]")
    with pytest.raises(UserError, match="joint: ema is there more than once"):
        settings("joint.after_step=[{kind: ema}]", "joint.ema=0.5")
    with pytest.raises(UserError, match=r"joint\.ema: Input should be less than 1"):
        settings("joint.ema=1")


def test_ema_is_short_for_what_follows_a_step(digits: Data) -> None:
    short, long = settings("joint.ema=0.5"), settings(f"joint.after_step={EMA}")
    assert short.joint.following == long.joint.following == long.joint.after_step
    assert settings("joint.ema=null").joint.following == []
    made, _ = trainer(short.joint, digits)
    assert made.checkpoint(0, []).families.keys() >= {"after:ema"}


def test_it_is_told_after_every_step(digits: Data) -> None:
    chosen = settings(*BOTH)
    made, model = trainer(chosen.joint, digits)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    for index, (x, y) in enumerate(made.batches.epoch(0)):
        made.step(index, x, y)
        for name, parameter in model.named_parameters():
            average[name] = 0.5 * average[name] + 0.5 * parameter.detach()
    kept = made.checkpoint(0, []).families["after:ema"]
    assert kept.keys() == average.keys()
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, average[name])
    assert any(not torch.equal(kept[n], p) for n, p in model.named_parameters())


def trainer(phase: Joint, digits: Data) -> tuple[Trainer, nn.Module]:
    model = assembly.seeded_expert(settings(), MEMBER, 0)
    batches = Batches(few(digits).train, phase.batch_size, Augment(), seed=0)
    return Trainer(model, phase, phase.attack, batches, Worker(), Numerics(), "all"), model


# it stays, in both phases


def test_a_resumed_mixture_and_its_average_are_the_same_bits(digits: Data, tmp_path: Path) -> None:
    _, kept = resumed(settings(*BOTH), few(digits), tmp_path)
    families = latest(kept).families
    assert {"model", "optimizer:sgd", "after:ema"} <= families.keys()
    assert any(not torch.equal(t, families["model"][n]) for n, t in families["after:ema"].items())


class Killed(Exception):
    pass


def expert(chosen: Config, data: Data, folder: Path, *, stop: bool = False) -> dict[str, Any]:
    store = ExpertStore(Folder.at(folder))

    def progress(epoch: int, step: int, steps: int) -> None:
        if stop and epoch == 1:
            raise Killed

    manifest = store.obtain(chosen, MEMBER, data, progress=progress)
    return {**manifest, "weights": store.weights(manifest["key"])}


def test_a_resumed_expert_and_its_average_are_the_same_bits(digits: Data, tmp_path: Path) -> None:
    chosen, data = settings(*BOTH, "experts.train.epochs=3"), few(digits)
    whole = expert(chosen, data, tmp_path / "whole")
    with pytest.raises(Killed):
        expert(chosen, data, tmp_path / "parts", stop=True)
    parts = expert(chosen, data, tmp_path / "parts")
    assert different(parts["weights"], whole["weights"]) == []
    told = [
        [{n: v for n, v in epoch.items() if "val_" in n or n == "train_loss"} for epoch in history]
        for history in (parts["history"], whole["history"])
    ]
    assert told[0] == told[1]
    assert {"trained_val_robust", "ema_val_robust", "val_robust"} <= told[0][0].keys()


# it is deployed where it is better


@pytest.mark.parametrize("preferred", [True, False])
def test_an_expert_is_stored_as_validation_prefers_it(
    preferred: bool, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch: the trained state is judged first, then the one that is offered."""
    chosen, data, judged = settings(*BOTH), few(digits), []

    def validate(model: nn.Module, *given: object) -> dict[str, float]:
        judged.append(copy_state(model))
        score = 0.6 if (len(judged) == 2) is preferred else 0.3
        return {"val_clean": score, "val_robust": score}

    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", validate)
    found = expert(chosen, data, tmp_path)
    trained, averaged = judged
    assert different(trained, averaged) != []
    assert different(found["weights"], averaged if preferred else trained) == []
    (told,) = found["history"]
    scores = {n: told[n] for n in ("val_robust", "trained_val_robust", "ema_val_robust")}
    assert scores == {
        "val_robust": 0.6,
        "trained_val_robust": 0.3 if preferred else 0.6,
        "ema_val_robust": 0.6 if preferred else 0.3,
    }


def test_the_mixture_of_an_epoch_is_the_state_that_its_figures_are_of(
    digits: Data, tmp_path: Path
) -> None:
    """Really validated: where the average is better it is deployed, and training goes on from the
    trained weights. Which one is better is chance here, so several seeds are tried."""
    data = few(digits)
    assert any(deployed_is_judged(seed, data, tmp_path / str(seed)) for seed in (1, 3, 0, 2, 4, 5))


def deployed_is_judged(seed: int, data: Data, folder: Path) -> bool:
    """Whether an epoch that is kept preferred the average."""
    rough = "joint.optimizer={lr: 0.5, schedule: {kind: constant}}"
    chosen = settings(*BOTH, rough, "joint.epochs=6", "joint.attack={kind: clean}", f"seed={seed}")
    epochs, kept = joint_phase(chosen, data, folder)
    attacks = validation_attacks(chosen.joint, chosen.joint.attack)
    preferred = []
    for index in kept.epochs():
        found, metrics = kept.load(index), epochs[index].metrics
        model = joint.trained(chosen, Folder.at(folder / "run"), data.identity, index)
        assert different(copy_state(model), found.deployed) == []
        again = validation_accuracies(model, data.val, attacks, chosen.seed, Worker())
        assert again == {name: metrics[name] for name in attacks}
        better = metrics["ema_val_clean"] > metrics["trained_val_clean"]
        assert (different(found.deployed, found.model) != []) is better
        preferred.append(better)
    return any(preferred)


def test_validation_leaves_the_trained_weights_alone(digits: Data) -> None:
    """What is trained is what is trained without an average, bit for bit."""
    data, states = few(digits), []
    for chosen in (settings(*BOTH), settings()):
        model = assembly.seeded_expert(chosen, MEMBER, 0)
        for _ in training.epochs(
            model,
            training.Training(
                chosen.joint, chosen.joint.attack, data.train, data.val, chosen.data.augment
            ),
        ):
            pass
        states.append(copy_state(model))
    assert different(*states) == []


def test_a_good_average_does_not_hide_that_training_overfits(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard judges the trained weights; all goes back to the last good epoch, and what that
    one would deploy is deployed."""
    scores = iter([(0.4, 0.5), (0.6, 0.6), (0.1, 0.9), (0.6, 0.6), (0.5, 0.5), (0.4, 0.4)])

    def validate(*given: object) -> dict[str, float]:
        robust, fgsm = next(scores)
        return {"val_clean": 0.6, "val_robust": robust, "val_fgsm": fgsm}

    monkeypatch.setattr("fmoe.training.loop.validation_accuracies", validate)
    pgd = "joint.validation.attack={kind: pgd, eps: 0.1, steps: 1}"
    chosen, data = settings(*BOTH, pgd), few(digits)
    kept = Checkpoints(Folder.at(tmp_path), "key")
    epochs = training.epochs(
        assembly.seeded_expert(chosen, MEMBER, 0),
        training.Training(
            chosen.joint, chosen.joint.attack, data.train, data.val, chosen.data.augment
        ),
        checkpoints=kept,
    )
    first, second = next(epochs), next(epochs)
    assert "overfitted" not in first.metrics
    assert "overfitted" in second.metrics
    assert second.metrics["val_robust"] == 0.6
    good, after = kept.load(0).families, kept.load(1).families
    assert good.keys() == after.keys() >= {"model", "deployed", "after:ema"}
    assert [n for n in good if different(good[n], after[n])] == []
    assert "overfitted" not in next(epochs).metrics
    assert "deployed" not in kept.load(2).families


# what a checkpoint must hold


@pytest.fixture(scope="module")
def stopped(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Killed):
        expert(settings(*BOTH, "experts.train.epochs=3"), few(digits), folder, stop=True)
    return folder


CHANGES: dict[str, tuple[Any, str]] = {
    "without it": (lambda f: f.pop("after:ema"), "has optimizer:sgd, but .* after:ema"),
    "of another kind": (lambda f: f.update({"after:swa": {}}), "after:swa"),
    "one less": (
        lambda f: f.update({"after:ema": dict(list(f["after:ema"].items())[1:])}),
        r"after:ema\..* is missing",
    ),
    "of another shape": (
        lambda f: f.update({"after:ema": {**f["after:ema"], HEAD: torch.zeros(3)}}),
        rf"after:ema\.{HEAD} is .* \[3\], not .* \[10\]",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_another_family_than_the_phases_is_refused_in_one_line(
    kind: str, digits: Data, stopped: Path, tmp_path: Path
) -> None:
    chosen, data = settings(*BOTH, "experts.train.epochs=3"), few(digits)
    key = expert_key(chosen, MEMBER, data.identity)
    found = latest(Checkpoints(Folder.at(stopped) / key / "epochs", key))
    change, message = CHANGES[kind]
    families = dict(found.families)
    change(families)
    doctored(found, families, Folder.at(tmp_path) / key / "epochs", key)
    with pytest.raises(UserError, match=message) as caught:
        expert(chosen, data, tmp_path)
    assert "\n" not in str(caught.value)


def doctored(found: Checkpoint, families: dict[str, Any], folder: Folder, key: str) -> None:
    Checkpoints(folder, key).save(replace(found, families=families), found.epoch)


def test_a_family_that_no_fmoe_knows_is_damage(tmp_path: Path) -> None:
    kept = Checkpoints(Folder.at(tmp_path), "key")
    kept.save(Checkpoint(0, {"model": {"w": torch.ones(1)}}, []), 0)
    folder = Folder.at(tmp_path) / "epoch-0000"
    manifest = folder.read_json("manifest.json")
    (tmp_path / "epoch-0000" / "manifest.json").unlink()
    folder.write_json("manifest.json", {**manifest, "families": ["model", "other"]})
    with pytest.raises(Damaged, match="other is none of the model's"):
        kept.load(0)


def test_going_back_to_adopted_weights_the_optimizer_begins_anew(digits: Data) -> None:
    """Of another kind there is nothing to go back to, and what has come since is forgotten."""
    muon, _ = trainer(settings("joint.optimizer={kind: muon}").joint, digits)
    x, y = next(muon.batches.epoch(0))
    muon.step(0, x, y)
    given = replace(muon.checkpoint(0, []), adopted=True)
    made, _ = trainer(settings().joint, digits)
    for _ in range(2):
        made.restore(given)
        kept = made.checkpoint(0, []).families
        assert all(name.endswith("/") for name in kept["optimizer:sgd"])
        assert different(kept["model"], given.model) == []
        made.step(0, x, y)
        kept = made.checkpoint(0, []).families
        assert all(name.endswith("/momentum_buffer") for name in kept["optimizer:sgd"])


def test_adopted_weights_without_it_begin_their_own(digits: Data) -> None:
    """A trial of PBT that averages takes over one that does not: the average starts at them."""
    plain, model = trainer(settings().joint, digits)
    x, y = next(plain.batches.epoch(0))
    plain.step(0, x, y)
    given = replace(plain.checkpoint(0, []), adopted=True)
    made, _ = trainer(settings(*BOTH).joint, digits)
    made.restore(given)
    kept = made.checkpoint(0, []).families["after:ema"]
    assert {n: torch.equal(kept[n], p) for n, p in model.named_parameters()} == dict.fromkeys(
        kept, True
    )
