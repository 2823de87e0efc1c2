"""An optimizer is added by a class and its name in `OptimizerConfig`: AdamW, in this file alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from fmoe import config, optim
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.storage.checkpoint import Checkpoints
from fmoe.storage.folder import Folder
from fmoe.storage.tensors import Tensors
from fmoe.training import joint
from fmoe.training.expert_store import ExpertStore, expert_key
from fmoe.training.metrics import TIMES
from tests.extending import whole_way
from tests.extending.added import added
from tests.extending.document import section
from tests.extending.whole_way import different

CODE = section("An optimizer")
AdamW = CODE.AdamW

MEMBER = ("fgsm", 0)


@pytest.fixture(scope="module", autouse=True)
def _adamw() -> Iterator[None]:
    with added(optim, "OptimizerConfig", AdamW):
        yield


@pytest.fixture(scope="module")
def few(digits: Data) -> Data:
    return whole_way.few(digits)


LONGER = ["experts.roles.pgd.count=1", "experts.train.epochs=3"]


def settings(*overrides: str, kind: str = "adamw") -> Config:
    own = [f"{phase}.optimizer={{kind: {kind}}}" for phase in ("experts.train", "joint")]
    return whole_way.settings(*LONGER, *own, *overrides)


def expert(chosen: Config, few: Data, folder: Path) -> Tensors:
    store = ExpertStore(Folder.at(folder))
    store.obtain(chosen, MEMBER, few)
    return store.weights(expert_key(chosen, MEMBER, few.identity))


def history(chosen: Config, few: Data, folder: Path) -> list[dict[str, float]]:
    key = expert_key(chosen, MEMBER, few.identity)
    found = ExpertStore(Folder.at(folder)).find(key)
    assert found is not None
    timings = {"seconds", "train_seconds", "images_per_second", *TIMES}
    return [{n: v for n, v in epoch.items() if n not in timings} for epoch in found["history"]]


class Killed(Exception):
    pass


def interrupted(chosen: Config, few: Data, folder: Path, *, epochs: int = 1) -> Checkpoints:
    """An expert's training that ended in the epoch after so many, and its checkpoints."""

    def progress(epoch: int, step: int, steps: int) -> None:
        if epoch == epochs:
            raise Killed

    key = expert_key(chosen, MEMBER, few.identity)
    with pytest.raises(Killed):
        ExpertStore(Folder.at(folder)).obtain(chosen, MEMBER, few, progress=progress)
    return Checkpoints(Folder.at(folder) / key / "epochs", key)


def test_it_is_named_in_a_recipe_and_in_an_override(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    tree = {"joint": {"optimizer": {"kind": "adamw", "lr": 0.01, "schedule": {"kind": "constant"}}}}
    file.write_text(yaml.safe_dump({"data": {"name": "digits"}, **tree}))
    chosen: Any = config.load(str(file), ["joint.optimizer.weight_decay=0.1"])
    assert chosen.joint.optimizer == AdamW(lr=0.01, weight_decay=0.1, schedule=optim.Constant())
    assert Config.model_validate(chosen.plain()) == chosen
    with pytest.raises(UserError, match=r"joint.optimizer.*'adamw'"):
        config.load("digits-whole", ["joint.optimizer={kind: adam}"])
    assert config.load("digits-whole", ["joint.optimizer={lr: 0.3}"]).joint.optimizer.kind == "sgd"


@pytest.mark.parametrize("kind", ["sgd", "muon", "adamw"])
def test_a_resumed_expert_is_the_same_bits(kind: str, few: Data, tmp_path: Path) -> None:
    """The best epoch's weights, and what every epoch reported: the best may be the first."""
    chosen = settings(kind=kind)
    whole = expert(chosen, few, tmp_path / "whole")
    interrupted(chosen, few, tmp_path / "parts")
    assert different(expert(chosen, few, tmp_path / "parts"), whole) == []
    histories = [history(chosen, few, tmp_path / name) for name in ("whole", "parts")]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("kind", ["sgd", "muon", "adamw"])
def test_a_resumed_mixture_is_the_same_bits(
    kind: str, few: Data, store: ExpertStore, tmp_path: Path
) -> None:
    chosen, states = settings("experts.train.epochs=1", kind=kind), []
    for name in ("whole", "parts"):
        run = Folder.at(tmp_path / name)
        if name == "parts":
            next(iter(joint.joint_epochs(chosen, few, store, run)))
        list(joint.joint_epochs(chosen, few, store, run))
        states.append(joint.checkpoints(run, chosen, few.identity).load(2))
    whole, parts = states
    assert whole.families.keys() == parts.families.keys() == {"model", f"optimizer:{kind}"}
    for family in whole.families:
        assert different(whole.families[family], parts.families[family]) == []


@pytest.fixture(scope="module")
def store(few: Data, tmp_path_factory: pytest.TempPathFactory) -> ExpertStore:
    made = ExpertStore(Folder.at(tmp_path_factory.mktemp("experts")))
    for kind in ("sgd", "muon", "adamw"):
        made.obtain_all(settings("experts.train.epochs=1", kind=kind), few)
    return made


def test_all_that_it_remembers_is_in_the_checkpoint(few: Data, tmp_path: Path) -> None:
    latest = interrupted(settings(), few, tmp_path).latest()
    assert latest is not None
    kept = latest.families["optimizer:adamw"]
    names = {name.rpartition("/")[2] for name in kept}
    assert names == {"exp_avg", "exp_avg_sq", "step"}
    assert kept["head.bias/step"] == 2
    assert len(kept) == 3 * len([n for n in latest.model if n.endswith(("weight", "bias"))])


def test_a_checkpoint_without_a_part_of_it_is_refused(few: Data, tmp_path: Path) -> None:
    kept = interrupted(settings(), few, tmp_path)
    latest = kept.latest()
    assert latest is not None
    state = latest.families["optimizer:adamw"]
    moments = {name: t for name, t in state.items() if not name.endswith("/exp_avg_sq")}
    kept.save(replace(latest, families={**latest.families, "optimizer:adamw": moments}), 0)
    with pytest.raises(UserError, match=r"optimizer\..*/exp_avg_sq is missing") as caught:
        expert(settings(), few, tmp_path)
    assert "\n" not in str(caught.value)
    without = {"model": latest.model}
    kept.save(replace(latest, families=without), 0)
    with pytest.raises(UserError, match=r"has , but this phase optimizer:adamw"):
        expert(settings(), few, tmp_path)


def with_checkpoint_of(other: Config, few: Data, folder: Path, *, adopted: bool) -> None:
    """An AdamW expert's folder that holds the first epoch of a training with other settings."""
    given = interrupted(other, few, folder / "given").latest()
    assert given is not None
    own = interrupted(settings(), few, folder)
    own.folder.delete()
    own.save(replace(given, adopted=adopted), 0)


def steps(kept: Checkpoints) -> set[int]:
    latest = kept.latest()
    assert latest is not None
    assert not latest.adopted
    state = latest.families["optimizer:adamw"]
    return {int(tensor) for name, tensor in state.items() if name.endswith("/step")}


@pytest.mark.parametrize(("other", "count"), [(settings, 4), (partial(settings, kind="sgd"), 2)])
def test_adopted_weights_bring_state_of_the_same_kind_and_shape_alone(
    other: Callable[[], Config], count: int, few: Data, tmp_path: Path
) -> None:
    """As a trial of PBT takes them over, in an epoch of two steps."""
    with_checkpoint_of(other(), few, tmp_path, adopted=True)
    assert steps(interrupted(settings(), few, tmp_path, epochs=2)) == {count}


def test_state_of_another_kind_is_refused_where_nothing_was_adopted(
    few: Data, tmp_path: Path
) -> None:
    with_checkpoint_of(settings(kind="sgd"), few, tmp_path, adopted=False)
    with pytest.raises(UserError, match=r"has optimizer:sgd, but .* optimizer:adamw"):
        expert(settings(), few, tmp_path)


def test_a_trial_marks_what_it_takes_over_as_adopted(
    few: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fmoe.on_ray.tuning import trials

    given = interrupted(settings(kind="muon"), few, tmp_path / "given").latest()
    assert given is not None
    offered = tmp_path / "offered"
    Checkpoints(Folder.at(offered), trials.EXCHANGE).save(given, given.epoch)

    class FromTune:
        def as_directory(self) -> nullcontext[str]:
            return nullcontext(str(offered))

    monkeypatch.setattr("ray.tune.get_checkpoint", FromTune)
    kept = Checkpoints(Folder.at(tmp_path / "own"), "key")
    assert trials.adopt(kept) == 0
    latest = kept.latest()
    assert latest is not None
    assert latest.adopted
    assert latest.families.keys() == {"model", "optimizer:muon"}
