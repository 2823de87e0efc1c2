"""The gate's temperature on its way through the joint phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fmoe import assembly, config
from fmoe.config import Config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.models.mixture import Mixture
from fmoe.numerics.worker import Worker
from fmoe.training import Trainer, Training
from tests.conftest import SMALL

PGD = "joint.attack={kind: pgd, eps: 0.1, steps: 1}"
SCHEDULE = "joint.first_temperature=4"


def settings(*overrides: str) -> Config:
    quick = ["joint.batch_size=32", "joint.epochs=2", "gate.temperature=0.25", PGD]
    return config.load("digits-whole", [*SMALL, *quick, *overrides])


def trainer(chosen: Config, few: Data) -> tuple[Mixture, Trainer]:
    """Two steps an epoch: four in all."""
    model, joint = assembly.seeded_mixture(chosen), chosen.joint
    return model, Training(joint, joint.attack, few.train, few.val).trainer(model, Worker())


def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[float]]:
    """The temperatures of all passes since it was called last, without repetition in a row."""
    told: list[float] = []
    usual = Mixture.log_weights

    def telling(self: Mixture, gate_logits: Tensor) -> Tensor:
        if not told or told[-1] != self.temperature:
            told.append(self.temperature)
        return usual(self, gate_logits)

    monkeypatch.setattr(Mixture, "log_weights", telling)

    def since() -> list[float]:
        given = [*told]
        told.clear()
        return given

    return since


@pytest.mark.parametrize("crafting", ["eval", "train"])
def test_it_goes_by_the_same_factor_a_step(
    crafting: str, few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4, 4 / 16^(1/3), 4 / 16^(2/3), 1/4; crafting and descending see the same one."""
    model, made = trainer(settings(SCHEDULE, f"joint.crafting={crafting}"), few)
    since = seen(monkeypatch)
    for epoch, expected in enumerate([[4, 4 * 16 ** (-1 / 3)], [4 * 16 ** (-2 / 3), 0.25]]):
        made.epoch(epoch, None)
        assert since() == pytest.approx(expected)
        assert model.temperature == 0.25, "what is validated and deployed has the gate's own"
        with torch.no_grad():
            model(few.val.pixels())
        assert since() == [0.25]


def test_without_it_the_gates_own_holds_all_along(
    few: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = trainer(settings(), few)
    since = seen(monkeypatch)
    made.epoch(0, None)
    assert since() == [0.25]


def test_it_changes_what_is_learned(few: Data) -> None:
    states = []
    for overrides in ((), (SCHEDULE,), ("joint.first_temperature=0.25",)):
        model, made = trainer(settings(*overrides), few)
        made.epoch(0, None)
        states.append(model.state_dict()["gate.head.weight"])
    assert not torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2]), "from the gate's own to the same: nothing changes"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("joint.first_temperature=0", r"joint\.first_temperature"),
        ("gate={kind: uniform}", r"gate\.kind: uniform has none that says anything"),
    ],
)
def test_refused(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings(SCHEDULE, override)
