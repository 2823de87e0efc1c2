"""The searcher: numbering, resuming from JSON alone, and what the schedulers make of trials."""

from __future__ import annotations

import datetime
import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from ray.tune.schedulers import TrialScheduler

from fmoe.on_ray.tuning.schedulers import Halving, Population, scheduler
from fmoe.on_ray.tuning.suggest import Suggestions
from fmoe.tuning import search_space
from fmoe.tuning.optuna_trials import as_optuna, exported, own_values, same
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial

DOMAINS = {
    "gate.kind": {"choice": ["conv", "linear"]},
    "gate.width": {"choice": [4, 8], "when": {"gate.kind": "conv"}},
    "gate.temperature": {"loguniform": [0.3, 3]},
    "joint.attack.of.1.eps": {"choice": [[0.1], [0.05, 0.1]]},
    "joint.attack.weights.0": {"quniform": [0, 2, 0.5]},
}


def space_of(folder: Path, domains: dict[str, Any] | None = None, **keys: Any) -> Space:
    tree = {"recipe": "digits-whole", "space": domains or DOMAINS} | keys
    (folder / "space.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return search_space.load(str(folder / "space.yaml"))


def ended(trial: Trial, *robust: float, status: Any = "finished") -> Trial:
    trial.history = [{"val_robust": r, "val_clean": 1 - r, "at": float(i)}
                     for i, r in enumerate(robust)]  # fmt: skip
    trial.status = status
    return trial


def play(suggestions: Suggestions, count: int) -> list[Trial]:
    """Trials whose robust accuracy is their temperature's distance from 1, all finished."""
    found = []
    for _ in range(count):
        number = suggestions.ask()["number"]
        trial = suggestions.under_way[number]
        temperature = suggestions.space.config(trial.values).gate.temperature
        suggestions.tell(ended(trial, 0.1, 1 - abs(temperature - 1) / 3))
        found.append(trial)
    return found


def reread(trials: list[Trial]) -> list[Trial]:
    """As a resume finds them."""
    return [Trial(**json.loads(json.dumps(vars(trial)))) for trial in trials]


def test_trials_are_numbered_and_the_recipe_comes_first(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    trials = play(Suggestions(space, [], [], 5), 5)
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert trials[0].values == {}
    assert all(set(trial.values) >= {"gate.kind", "gate.temperature"} for trial in trials[1:])
    without = Suggestions(space_of(tmp_path, baseline=False), [], [], 5)
    assert play(without, 1)[0].values != {}


def test_what_a_trial_is_told_is_its_whole_configuration(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    suggestions = Suggestions(space, [], [], 3)
    for _ in range(3):
        asked = suggestions.suggest("any")["asked"]
        values = suggestions.under_way[asked["number"]].values
        assert json.loads(asked["values"]) == values
        assert json.loads(asked["config"]) == space.config(values).plain()


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_the_same_study_draws_the_same_trials(kind: str, tmp_path: Path) -> None:
    space = space_of(tmp_path, searcher={"kind": kind})
    one, two = (play(Suggestions(space, [], [], 8), 8) for _ in range(2))
    assert [t.values for t in one] == [t.values for t in two]
    other = search_space.load(space.source, ["seed=1"])
    assert [t.values for t in play(Suggestions(other, [], [], 8), 8)] != [t.values for t in one]


def test_tpe_learns_and_a_resumed_one_knows_what_the_first_knew(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"gate.temperature": {"loguniform": [0.05, 20]}},
                     searcher={"kind": "tpe", "startup": 5})  # fmt: skip
    trials = play(Suggestions(space, [], [], 40), 40)

    def distance(some: list[Trial]) -> float:
        temperatures = [space.config(trial.values).gate.temperature for trial in some]
        return sum(abs(t - 1) for t in temperatures) / len(some)

    resumed = Suggestions(space, reread(trials[:20]), [], 40)
    further = play(resumed, 20)
    assert [trial.number for trial in further] == list(range(20, 40))
    # random draws are 4.3 away from 1 on average
    assert distance(trials[20:]) < 1.5
    assert distance(further) < 1.5
    known = [t.values for t in resumed.optuna.trials if t.state == TrialState.COMPLETE]
    assert len(known) == 40


def test_unfinished_trials_come_again_with_number_and_values(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    first = Suggestions(space, [], [], 6)
    done = play(first, 2)
    cut = [first.under_way[first.ask()["number"]] for _ in range(2)]
    resumed = Suggestions(space, reread(done), reread(cut), 6)
    assert resumed.more == 4
    again = play(resumed, 4)
    assert [(t.number, t.values) for t in again[:2]] == [(t.number, t.values) for t in cut]
    assert [t.number for t in again[2:]] == [4, 5]


def test_outcomes_reach_the_sampler_as_what_they_are(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    suggestions = Suggestions(space, [], [], 9)
    for status, robust in (
        ("finished", (0.1, 0.6, 0.5)),
        ("pruned", (0.2,)),
        ("stopped", ()),
        ("failed", (0.3,)),
    ):
        suggestions.ask()
        trial = suggestions.under_way[max(suggestions.under_way)]
        suggestions.tell(ended(trial, *robust, status=status))
    # the recipe's own width is in the space, its eps list too: it counts as a trial
    states = [(trial.state, trial.value) for trial in suggestions.optuna.trials]
    assert states == [
        (TrialState.COMPLETE, 0.6),
        (TrialState.PRUNED, 0.2),
        (TrialState.FAIL, None),
        (TrialState.FAIL, None),
    ]
    complete = as_optuna(space, list(suggestions.under_way.values()))
    assert [trial.value for trial in complete.trials] == [0.6, 0.2]


def test_a_recipe_outside_of_the_space_is_no_trial_of_the_sampler(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"gate.temperature": {"uniform": [2, 3]}})
    suggestions = Suggestions(space, [], [], 3)
    play(suggestions, 1)
    assert suggestions.optuna.trials == []
    assert own_values(space) == {"gate.temperature": 1.0}


def test_nsga2_goes_on_from_the_population_it_had(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "metrics": {"val_clean": "max", "val_robust": "max"},
        "searcher": {"kind": "nsga2", "population": 4},
    }
    space = space_of(tmp_path, baseline=False, **keys)
    trials = play(Suggestions(space, [], [], 12), 12)
    generations = [next(iter(trial.search.values())) for trial in trials]
    assert generations == [0] * 4 + [1] * 4 + [2] * 4
    further = play(Suggestions(space, reread(trials[:8]), [], 12), 4)
    assert [next(iter(trial.search.values())) for trial in further] == [2] * 4


def test_grid_is_gone_through_once_whatever_the_budget(tmp_path: Path) -> None:
    domains = {"gate.kind": {"choice": ["conv", "linear"]}, "gate.temperature": {"choice": [1, 2]}}
    space = space_of(tmp_path, domains, searcher={"kind": "grid"})
    suggestions = Suggestions(space, [], [], 100)
    assert suggestions.more == 5
    trials = play(suggestions, 5)
    assert [tuple(trial.values.values()) for trial in trials] == [
        (),
        ("conv", 1),
        ("conv", 2),
        ("linear", 1),
        ("linear", 2),
    ]
    many = space_of(tmp_path, {"joint.epochs": {"int": [1, 10_000_000]}},
                    searcher={"kind": "grid"})  # fmt: skip
    assert Suggestions(many, [], [], 3).more == 3
    resumed = Suggestions(space, reread(trials[:3]), [], 100)
    assert resumed.more == 2
    assert play(resumed, 2)[0].values == trials[3].values


def test_tune_can_pickle_it_and_nothing_is_in_it(tmp_path: Path) -> None:
    suggestions = Suggestions(space_of(tmp_path), [], [], 3)
    assert b"gate.temperature" not in pickle.dumps(suggestions)
    suggestions.save(str(tmp_path / "state"))
    assert (tmp_path / "state").read_bytes() == b""
    with pytest.raises(NotImplementedError):
        suggestions.restore(str(tmp_path / "state"))


# --- schedulers


def tune_trial(number: int) -> Any:
    return SimpleNamespace(trial_id=f"t{number}", config={"asked": {"number": number}})


def decisions(halving: Halving, number: int, *robust: float) -> list[str]:
    trial = tune_trial(number)
    halving.on_trial_add(None, trial)
    found = []
    for epoch, value in enumerate(robust):
        found.append(
            halving.on_trial_result(None, trial, {"epochs": epoch + 1, "val_robust": value})
        )
        if found[-1] == TrialScheduler.STOP:
            break
    return found


def test_asha_prunes_the_worse_and_never_the_recipe(tmp_path: Path) -> None:
    asha = {"kind": "asha", "grace": 1, "reduction": 2}
    halving = scheduler(space_of(tmp_path, scheduler=asha, set={"joint.epochs": 4}), [])
    assert decisions(halving, 1, 0.5, 0.6, 0.7) == ["CONTINUE"] * 3
    assert decisions(halving, 2, 0.4) == ["STOP"]
    assert decisions(halving, 3, 0.9, 0.5) == ["CONTINUE", "STOP"]
    assert decisions(halving, 0, 0.1, 0.1, 0.1) == ["CONTINUE"] * 3
    assert decisions(halving, 4, 0.9, 0.9, 0.9, 0.9) == ["CONTINUE"] * 3 + ["STOP"]  # its end
    without = scheduler(space_of(tmp_path, scheduler=asha, baseline=False), [])
    decisions(without, 1, 0.5)
    assert decisions(without, 0, 0.1) == ["STOP"]


def test_asha_remembers_earlier_tries(tmp_path: Path) -> None:
    asha = {"kind": "asha", "grace": 1, "reduction": 2}
    space = space_of(tmp_path, scheduler=asha)
    earlier = [ended(Trial(i, {}), value) for i, value in enumerate((0.5, 0.6, 0.7))]
    assert decisions(scheduler(space, []), 7, 0.4) == ["CONTINUE"]
    assert decisions(scheduler(space, earlier), 7, 0.4) == ["STOP"]


def test_pbt_takes_over_values_and_keeps_the_number(tmp_path: Path) -> None:
    domains = {"gate.temperature": {"uniform": [0.5, 2]}}
    space = space_of(tmp_path, domains, scheduler={"kind": "pbt"})
    suggestions = Suggestions(space, [], [], 2)
    weak, strong = (SimpleNamespace(config={"asked": suggestions.ask()}) for _ in range(2))
    population = scheduler(space, [])
    assert isinstance(population, Population)
    config, _ = population._get_new_config(weak, strong)
    asked = config["asked"]
    assert (asked["number"], asked["parent"]) == (0, 1)
    temperature = json.loads(asked["values"])["gate.temperature"]
    assert json.loads(asked["config"])["gate"]["temperature"] == temperature


def test_the_recipe_is_a_trial_of_the_sampler_however_its_numbers_are_written(
    tmp_path: Path,
) -> None:
    """A space's 0 is the recipe's 0.0; its `true` is no 1."""
    domains = {
        "joint.own": {"choice": [0, 0.3]},
        "joint.attack.of.1.eps": {"choice": [[0.05, 0.1], [0, 1]]},
    }
    space = space_of(tmp_path, domains, set={"joint.attack.of.1.eps": [0.0, 1.0]})
    suggestions = Suggestions(space, [], [], 3)
    play(suggestions, 1)
    (told,) = suggestions.optuna.trials
    assert told.params == {"joint.own": "0", "joint.attack.of.1.eps": "[0, 1]"}
    assert not same(True, 1)
    assert not same([1, {"a": 0}], [1, {"a": False}])
    assert not same([1], [1, 1])


def test_what_optunas_own_tools_see(tmp_path: Path) -> None:
    """Pruned trials with their last figure, as a study of Optuna's keeps them, at their times."""
    space = space_of(tmp_path, {"gate.temperature": {"loguniform": [0.3, 3]}})
    at = datetime.datetime(2026, 11, 2, 3, 4, 5)
    trials = [
        ended(Trial(0, {"gate.temperature": 2.0}), 0.1, 0.5),
        ended(Trial(1, {"gate.temperature": 1.0}), 0.4, 0.3, status="pruned"),
        ended(Trial(2, {"gate.temperature": 0.5}), status="failed"),
    ]
    for minutes, trial in enumerate(trials):
        trial.started = at.timestamp() + 60 * minutes
        trial.ended = trial.started + 30
    by_optuna = optuna.create_study(direction="maximize")
    asked = by_optuna.ask()
    for step, value in enumerate((0.4, 0.3)):
        asked.report(value, step)
    by_optuna.tell(asked, state=TrialState.PRUNED)
    made = exported(space, trials, "st", f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.values for trial in made] == [[0.5], by_optuna.trials[0].values, None]
    assert [trial.datetime_start for trial in made] == [
        at + datetime.timedelta(minutes=minutes) for minutes in range(3)
    ]
    assert {trial.duration for trial in made} == {datetime.timedelta(seconds=30)}
