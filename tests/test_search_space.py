"""Spaces: what is refused before anything starts, and what they sample."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fmoe.errors import UserError
from fmoe.tuning import search_space
from fmoe.tuning.domains import Sweep, Walk
from fmoe.tuning.search_space import Space

ROOT = Path(__file__).parent.parent
SHIPPED = search_space.spaces()


def written(folder: Path, **keys: Any) -> str:
    tree = {"recipe": "digits", "space": {"gate.temperature": {"uniform": [0.5, 2]}}} | keys
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return str(file)


def space_of(folder: Path, domains: dict[str, Any], **keys: Any) -> Space:
    return search_space.load(written(folder, space=domains, **keys))


def test_the_named_spaces_are_shipped() -> None:
    assert {"digits", "cifar10-small", "cifar10", "svhn"} <= set(SHIPPED)


def test_a_space_by_name_or_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "tune_spaces" / "digits.yaml"
    monkeypatch.chdir(tmp_path)
    by_name, by_path = search_space.load("digits"), search_space.load(str(file))
    assert by_name.study == by_path.study
    assert by_name.text == by_path.text == file.read_text()
    assert by_name.source == "digits"
    own = file.read_text().replace("trials: 12", "trials: 3")
    for name in ("digits", "digits.yaml", "mine"):
        (tmp_path / name).write_text(own)
    assert search_space.load("digits").study.budget.trials == 12, "a name is a name"
    for path in ("./digits", "digits.yaml", "mine"):
        assert search_space.load(path).study.budget.trials == 3
    for unknown in ("digit", "digit.yaml", "nonesuch/digits.yaml"):
        there = "there are cifar10, cifar10-small, cifar10-small-branched, digits, svhn"
        with pytest.raises(UserError, match=there):
            search_space.load(unknown)
    with pytest.raises(UserError, match=r"^\.: is no regular file"):
        search_space.load(".")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_vary_experts_temperature_gate_and_attacks(name: str) -> None:
    space = search_space.load(name)
    paths = {domain.path for domain in space.domains}
    assert {"gate.temperature", "gate.kind"} <= paths
    assert any(path.startswith("experts.roles.") and path.endswith(".count") for path in paths)
    assert any(path.endswith(".eps") for path in paths)
    assert any(path.endswith(".steps") for path in paths)
    assert any("weights" in path for path in paths)
    assert len(space.samples) == 100
    for line in space.text.split("space:")[1].splitlines():
        assert len(line) <= 100


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({"gate.temprature": {"uniform": [1, 2]}}, "gate.temprature: there is no such path in"),
        ({"experts.width": {"choice": [4, 8]}}, "experts.width: is now experts.backbone.width"),
        ({"joint.attack.of.7.eps": {"choice": [0.1]}}, "joint.attack.of.7.eps: there is no such"),
        ({"gate.temperature": {"uniform": [2, 1]}}, "range from 2 to 1 is empty"),
        ({"gate.temperature": {"uniform": [1]}}, r"uniform: expected \[low, high\]"),
        ({"gate.temperature": {"uniform": ["a", 2]}}, "uniform: 'a' is not a number"),
        ({"gate.temperature": {"uniform": [True, 2]}}, "True is not a number"),
        ({"gate.temperature": {"uniform": [1, float("inf")]}}, "inf is not a number"),
        ({"gate.temperature": {"loguniform": [0, 1]}}, "loguniform: 0 has no logarithm"),
        ({"gate.temperature": {"quniform": [0.5, 2, 9]}}, "a step of 9 does not fit"),
        ({"gate.width": {"int": [1.5, 4]}}, "int: 1.5 and 4 are not both integers"),
        ({"gate.width": {"choice": []}}, "gate.width: choice: expected a list"),
        ({"gate.width": {"among": [1, 2]}}, "gate.width: expected one of choice, uniform"),
        ({"gate.width": {"choice": [1], "int": [1, 2]}}, "gate.width: expected one of choice"),
        ({"gate.width": [1, 2]}, "gate.width: expected one of choice"),
        ({"gate.width": {"choice": [8], "when": "conv"}}, "when: expected path: value"),
        ({"gate.width": {"choice": [8], "when": {1: 2}}}, "when: expected path: value"),
        (
            {"gate.width": {"choice": [8], "when": {"gate.sort": "conv"}}},
            "gate.sort: there is no such path",
        ),
        ({"evaluate.eps": {"uniform": [0.1, 0.2]}}, "evaluate.eps: decides what trials learn from"),
        ({"joint.validation.attack.steps": {"int": [1, 5]}}, "how they are judged"),
        ({"data.val_images": {"int": [10, 50]}}, "must be the same for all"),
        # a range of which a part is no configuration
        ({"gate.temperature": {"uniform": [-1, 2]}}, "gate.temperature"),
        ({"experts.roles.pgd.count": {"choice": [4, 65]}}, "experts.roles.pgd.count"),
        ({"gate.kind": {"choice": ["conv", "oracle"]}}, "gate"),
        ({"gate.kind": {"choice": ["linear"]}, "gate.width": {"choice": [8]}}, "gate: unknown key"),
    ],
)
def test_impossible_spaces_are_refused(
    domains: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        space_of(tmp_path, domains)
    assert str(caught.value).startswith(str(tmp_path / "space.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"metrics": {"val_rubust": "max"}}, "val_rubust is not reported .there are: val_robust"),
        ({"metrics": {"val_robust": "up"}}, "metrics.val_robust"),
        ({"metrics": {}}, "metrics"),
        ({"searcher": {"kind": "nsga2"}}, "nsga2 looks for a front: give two metrics"),
        ({"searcher": {"kind": "bayes"}}, "searcher"),
        ({"scheduler": {"kind": "asha", "reduction": 1}}, "scheduler.reduction"),
        ({"budget": {"trials": 0}}, "budget.trials"),
        ({"space": {}}, "space"),
        ({"sapce": {}}, "unknown key sapce .allowed: recipe, set"),
        ({"recipe": "nothing"}, "unknown recipe 'nothing'"),
        ({"set": {"joint.epoch": 3}}, "joint: unknown key epoch"),
        ({"final": {"attacks": ["strong"]}}, "final.attacks.0"),
    ],
)
def test_impossible_studies_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        search_space.load(written(tmp_path, **keys))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.yaml: not readable"):
        search_space.load(str(tmp_path / "missing.yaml"))
    (tmp_path / "bad.yaml").write_text("recipe: [")
    with pytest.raises(UserError, match=r"bad\.yaml: not YAML"):
        search_space.load(str(tmp_path / "bad.yaml"))


def test_conditions_decide_what_is_sampled(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "gate.kind": {"choice": ["conv", "linear", "uniform"]},
            "gate.width": {"choice": [4, 8], "when": {"gate.kind": "conv"}},
            "gate.temperature": {"uniform": [1, 2], "when": {"gate.kind": ["conv", "linear"]}},
        },
    )
    seen = set()
    for index in range(50):
        values = space.sample(Sweep(index))
        kind = values["gate.kind"]
        seen.add(kind)
        assert ("gate.width" in values) == (kind == "conv")
        assert ("gate.temperature" in values) == (kind != "uniform")
        chosen = space.config(values)
        assert chosen.gate.kind == kind
        if "gate.temperature" in values:
            assert chosen.gate.temperature == values["gate.temperature"]
    assert seen == {"conv", "linear", "uniform"}


def test_a_whole_part_may_be_chosen_before_its_keys(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "gate": {"choice": [{"kind": "conv", "width": 4}, {"kind": "linear"}]},
            "gate.temperature": {"choice": [3.0]},
        },
    )
    gates = [chosen.gate for chosen in space.samples]
    assert {gate.kind for gate in gates} == {"conv", "linear"}
    assert {gate.temperature for gate in gates} == {3.0}


def test_another_kind_keeps_what_both_know(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {"gate.kind": {"choice": ["linear"]}},
        set={"gate.temperature": 2.5, "gate.width": 8},
    )
    assert space.config({"gate.kind": "linear"}).gate.model_dump() == {
        "kind": "linear",
        "temperature": 2.5,
    }
    assert space.config({"gate.kind": "top1"}).gate.model_dump()["width"] == 8


def test_base_is_the_recipe_with_set_then_with_overrides(tmp_path: Path) -> None:
    file = written(tmp_path, set={"joint.epochs": 3, "gate.temperature": 0.5})
    space = search_space.load(file, ["joint.epochs=4"])
    assert (space.base.joint.epochs, space.base.gate.temperature) == (4, 0.5)
    assert space.config({}) == space.base


def test_options_take_the_place_of_the_files_keys(tmp_path: Path) -> None:
    file = written(
        tmp_path, budget={"trials": 9, "minutes": 3}, scheduler={"kind": "asha", "grace": 2}
    )
    space = search_space.load(file, budget={"trials": 4}, scheduler="asha", searcher="random")
    assert (space.study.budget.trials, space.study.budget.minutes) == (4, 3)
    assert space.study.scheduler.model_dump() == {"kind": "asha", "grace": 2, "reduction": 3}
    assert space.study.searcher.kind == "random"
    assert search_space.load(file, scheduler="fifo").study.scheduler.kind == "fifo"
    plain = written(tmp_path, scheduler="asha")
    assert search_space.load(plain, scheduler="fifo").study.scheduler.kind == "fifo"
    with pytest.raises(UserError, match=r"budget"):
        search_space.load(written(tmp_path, budget=12), budget={"trials": 4})


def test_the_recipe_may_be_a_file_beside_the_space(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("joint: {epochs: 7}\n")
    assert search_space.load(written(tmp_path, recipe="mine.yaml")).epochs == 7


def test_epochs_are_those_of_the_longest_trial(tmp_path: Path) -> None:
    assert space_of(tmp_path, {"joint.epochs": {"int": [2, 31]}}).epochs == 31


def test_ratios_are_numbers(tmp_path: Path) -> None:
    path = "joint.attack.of.1.eps"
    space = space_of(tmp_path, {path: {"uniform": ["4/255", "8/255"]}})
    assert space.sample(Sweep(1))[path] == pytest.approx(8 / 255)


def test_grid_goes_through_all_combinations_once(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "gate.kind": {"choice": ["conv", "uniform"]},
            "gate.width": {"int": [3, 5], "when": {"gate.kind": "conv"}},
            "joint.attack.weights.0": {"quniform": [0, 1, 0.5]},
        },
        searcher={"kind": "grid"},
    )
    found = [tuple(values.values()) for values in space.grid()]
    weights = (0.0, 0.5, 1.0)
    assert found == [
        *(("conv", width, weight) for width, weight in itertools.product((3, 4, 5), weights)),
        *(("uniform", weight) for weight in weights),
    ]


def test_grid_needs_steps(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gate\.temperature: a grid needs choice, int or quniform"):
        space_of(tmp_path, {"gate.temperature": {"uniform": [1, 2]}}, searcher={"kind": "grid"})


def test_pbt_changes_nothing_that_decides_the_network(tmp_path: Path) -> None:
    pbt = {"kind": "pbt"}
    space_of(tmp_path, {"gate.temperature": {"uniform": [1, 2]}}, scheduler=pbt)
    with pytest.raises(UserError, match=r"experts\.roles\.pgd\.count: pbt changes a trial while"):
        space_of(tmp_path, {"experts.roles.pgd.count": {"choice": [1, 2]}}, scheduler=pbt)


def test_exploring_stays_in_the_space_and_moves(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "gate.temperature": {"loguniform": [0.3, 3]},
            "joint.attack.weights.0": {"quniform": [0, 2, 0.5]},
            "joint.attack.of.2.steps": {"choice": [[2], [3, 5, 7], [5]]},
        },
        scheduler={"kind": "pbt"},
    )
    values = space.sample(Sweep(30))
    moved = {path: set() for path in values}  # type: ignore[var-annotated]
    for seed in range(60):
        other = space.explore(values, random.Random(seed))
        space.config(other)
        for path, value in other.items():
            moved[path].add(str(value))
        assert 0.3 <= other["gate.temperature"] <= 3
        assert other["joint.attack.weights.0"] in (0, 0.5, 1, 1.5, 2)
    assert all(len(seen) > 1 for seen in moved.values())


def test_exploring_keeps_to_conditions(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "joint.loss.kind": {"choice": ["cross_entropy", "trades"]},
            "joint.loss.beta": {"uniform": [1, 6], "when": {"joint.loss.kind": "trades"}},
        },
        scheduler={"kind": "pbt"},
    )
    for values in ({"joint.loss.kind": "trades", "joint.loss.beta": 3.0},
                   {"joint.loss.kind": "cross_entropy"}):  # fmt: skip
        kinds = set()
        for seed in range(40):
            other = space.explore(values, random.Random(seed))
            kinds.add(space.config(other).joint.loss.kind)
            assert ("joint.loss.beta" in other) == (other["joint.loss.kind"] == "trades")
        assert len(kinds) == 2


def test_a_grid_of_millions_is_counted_as_far_as_the_budget(tmp_path: Path) -> None:
    grid = {"searcher": {"kind": "grid"}, "budget": {"trials": 7}}
    assert space_of(tmp_path, {"joint.epochs": {"int": [1, 10_000_000]}}, **grid).most == 7
    assert space_of(tmp_path, {"joint.epochs": {"int": [1, 3]}}, **grid).most == 4
    assert space_of(tmp_path, {"joint.epochs": {"int": [1, 3]}}, budget={"trials": 7}).most == 7


@settings(max_examples=30, deadline=None)
@given(low=st.floats(0.01, 10), width=st.floats(0.01, 10), index=st.integers(0, 99))
def test_samples_lie_in_their_range(low: float, width: float, index: int) -> None:
    high = low + width
    for log in (False, True):
        assert (
            low * 0.999999 <= Sweep(index).suggest_float("x", low, high, log=log) <= high * 1.000001
        )
    stepped = Sweep(index).suggest_float("x", low, high, step=width / 4)
    assert (stepped - low) / (width / 4) == pytest.approx(round((stepped - low) / (width / 4)))


def test_sweep_goes_through_every_option_and_both_ends() -> None:
    options = [str(i) for i in range(7)]
    assert [Sweep(i).suggest_categorical("x", options) for i in range(7)] == options
    assert [Sweep(i).suggest_int("x", 2, 9) for i in range(2)] == [2, 9]


def test_walk_ends() -> None:
    places: list[int] | None = []
    leaves = []
    while places is not None:
        walk = Walk(places)
        a = walk.suggest_int("a", 0, 1)
        leaves.append((a, walk.suggest_int("b", 0, 2) if a else None))
        places = walk.following()
    assert leaves == [(0, None), (1, 0), (1, 1), (1, 2)]
