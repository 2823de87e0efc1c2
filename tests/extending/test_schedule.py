"""A learning rate's schedule is added by a class and its name in `ScheduleConfig`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmoe import optim
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.optim import SGD, Muon
from tests.extending.added import added
from tests.extending.document import section
from tests.extending.whole_way import few, resumed, settings

CODE = section("A schedule")
Linear = CODE.Linear


@pytest.fixture(scope="module", autouse=True)
def _linear() -> Iterator[None]:
    with added(optim, "ScheduleConfig", Linear):
        yield


def test_it_is_named_in_an_override_of_both_phases_and_of_each_optimizer() -> None:
    chosen: Any = settings(
        "joint.optimizer={kind: muon, schedule: {kind: linear, end: 0.5}}",
        "experts.train.optimizer.schedule={kind: linear}",
    )
    assert isinstance(chosen.joint.optimizer, Muon)
    schedule: Any = chosen.joint.optimizer.schedule
    assert schedule == Linear(end=0.5)
    assert chosen.experts.train.optimizer.schedule == Linear()
    assert type(chosen).model_validate(chosen.plain()) == chosen
    with pytest.raises(UserError, match=r"schedule.end: Input should be less than or equal to 1"):
        settings("joint.optimizer.schedule={kind: linear, end: 2}")


def test_every_step_is_made_at_its_rate() -> None:
    parameter = nn.Parameter(torch.zeros(()))
    plain = {"lr": 0.5, "momentum": 0, "weight_decay": 0, "schedule": {"kind": "linear"}}
    optimizers = SGD.model_validate(plain).build({"p": parameter})
    for step in range(4):
        parameter.grad = torch.ones(())
        optimizers.step(step, 4)
    # 0.5 * (1 + 3/4 + 1/2 + 1/4)
    assert parameter.item() == pytest.approx(-1.25)


def test_it_is_trained_with_and_resumed(digits: Data, tmp_path: Path) -> None:
    chosen = settings("joint.optimizer={lr: 0.2, schedule: {kind: linear, end: 0.1}}")
    epochs, _ = resumed(chosen, few(digits), tmp_path)
    # three epochs of two steps: the last step of each is 1, 3, 5 of 6
    expected = [0.2 * (1 - 0.9 * step / 6) for step in (1, 3, 5)]
    assert [epoch.metrics["lr"] for epoch in epochs] == pytest.approx(expected)
