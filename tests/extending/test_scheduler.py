"""To add a scheduler of studies: a class with its settings, and its name in the union."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from fmoe.errors import UserError
from fmoe.on_ray.tuning.schedulers import scheduler
from fmoe.tuning import search_space
from fmoe.tuning.schedulers import PBT
from tests.extending.document import section
from tests.extending.studies import space_of, with_kind

CODE = section("A scheduler of studies")
Median = CODE.Median


@pytest.fixture
def median(monkeypatch: pytest.MonkeyPatch) -> None:
    with_kind(monkeypatch, "scheduler", Median)


CONTROLLER: Any = SimpleNamespace(get_live_trials=list)


class TuneTrial:
    """What a scheduler reads of Ray Tune's."""

    def __init__(self, number: int):
        self.trial_id, self.config = str(number), {"asked": {"number": number}}


def course(made: TrialScheduler, number: int, robust: list[float]) -> list[str]:
    """What it says after each epoch of a trial of these figures."""
    trial: Any = TuneTrial(number)
    made.on_trial_add(CONTROLLER, trial)
    said = []
    for epoch, value in enumerate(robust):
        result = {"epochs": epoch + 1, "val_robust": value, "time_total_s": 1.0}
        said.append(str(made.on_trial_result(CONTROLLER, trial, result)))
        if said[-1] == "STOP":
            break
    return said


def test_it_is_what_a_space_names(median: None, tmp_path: Path) -> None:
    space = space_of(tmp_path, scheduler={"kind": "median", "grace": 2})
    assert space.study.scheduler.model_dump() == {"kind": "median", "grace": 2}
    made = scheduler(space, [])
    assert isinstance(made, MedianStoppingRule)
    for number in (1, 2, 3):
        assert course(made, number, [0.5, 0.6, 0.7]) == ["CONTINUE"] * 3
    assert course(made, 4, [0.1, 0.1, 0.1]) == ["CONTINUE", "STOP"]


def test_the_recipe_as_it_stands_is_never_ended_early(median: None, tmp_path: Path) -> None:
    for baseline, last in ((True, "CONTINUE"), (False, "STOP")):
        made = scheduler(space_of(tmp_path, scheduler={"kind": "median"}, baseline=baseline), [])
        for number in (1, 2, 3):
            course(made, number, [0.5, 0.6])
        assert course(made, 0, [0.1, 0.1, 0.1])[-1] == last


def test_the_command_line_may_name_it(median: None, tmp_path: Path) -> None:
    file = space_of(tmp_path).source
    assert isinstance(search_space.load(file, scheduler="median").study.scheduler, Median)
    with pytest.raises(UserError, match=r"^--scheduler bohb: .* asha, fifo, pbt, median$"):
        search_space.load(file, scheduler="bohb")
    with pytest.raises(UserError, match=r"space\.yaml: scheduler: .*'pbt', 'median'"):
        space_of(tmp_path, scheduler={"kind": "bohb"})


def test_what_trials_that_take_over_need_is_asked_of_the_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A second kind of PBT has no baseline, no grid, and only what may change while training."""

    class Slow(PBT):
        kind: Literal["slow"] = "slow"  # type: ignore[assignment]

    with_kind(monkeypatch, "scheduler", Slow)
    slow = {"kind": "slow"}
    space = space_of(tmp_path, scheduler=slow)
    assert not space.study.has_baseline
    with pytest.raises(UserError, match="searcher: grid, but slow moves away"):
        space_of(tmp_path, scheduler=slow, searcher={"kind": "grid"})
    with pytest.raises(UserError, match="slow changes a trial while it trains"):
        space_of(tmp_path, scheduler=slow, space={"gate.width": {"choice": [2, 4]}})
