"""A kind whose name stands in two unions: the path says which of them is meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest

from fmoe import config, optim
from fmoe.config import Config
from fmoe.config.kinds import kinds
from fmoe.models.gates import Linear
from fmoe.schema import Spec
from tests.extending.added import added


class LinearDecay(Spec):
    """A schedule with a gate's name, and without a gate's fields."""

    kind: Literal["linear"] = "linear"
    end: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        return 1 - (1 - self.end) * step / steps


@pytest.fixture(autouse=True)
def _added() -> Iterator[None]:
    with added(optim, "ScheduleConfig", LinearDecay):
        yield


def test_a_gate_keeps_its_temperature_though_a_schedule_has_its_name() -> None:
    loaded = config.load("digits-whole", ["gate.temperature=3", "gate.kind=linear"])
    assert loaded.gate == Linear(temperature=3)


@pytest.mark.parametrize("phase", ["joint", "experts.train"])
def test_the_schedule_is_named_by_its_own_path(phase: str) -> None:
    path = f"{phase}.optimizer.schedule"
    loaded = config.load("digits", [f"{path}.peak=0.3", f"{path}.kind=linear", f"{path}.end=0.5"])
    tree = config.get(loaded.plain(), path)
    assert tree == {"kind": "linear", "end": 0.5}
    assert Config.model_validate(loaded.plain()) == loaded


def test_kinds_are_those_of_the_union_that_the_path_names() -> None:
    tree = config.load("digits-whole").plain()

    def at(path: str) -> set[str]:
        return set(kinds(Config, tree, path.split(".")))

    own = {
        "gate": {"conv", "resnet", "linear", "uniform", "top1"},
        "joint.optimizer": {"sgd", "muon"},
        "joint.optimizer.schedule": {"cyclic", "piecewise", "constant", "linear"},
        "experts.backbone": {"resnet18"},
        "experts.roles.any.attack": {"clean", "fgsm", "pgd", "mix"},
    }
    named = set().union(*own.values())
    for path, those in own.items():
        assert at(path) & named == those, path  # a kind that is added later may stand beside them
    assert at("experts.roles.pgd.backbone") == at("experts.backbone")
    assert at("joint.attack.of.1") == at("joint.attack") == at("joint.validation.attack")
    for path in ("experts", "joint.attack.of", "joint.attack.of.x", "data.name", "nonesuch.a.b"):
        assert at(path) == set()


def test_the_values_on_the_way_decide_between_members() -> None:
    assert (
        kinds(Config, {"joint": {"attack": {"kind": "pgd"}}}, ["joint", "attack", "of", "0"]) == {}
    )
    assert "pgd" in kinds(Config, {}, ["joint", "attack", "of", "0"])
