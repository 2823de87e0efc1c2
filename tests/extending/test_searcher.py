"""To add a searcher of studies: a class with its settings, and its name in the union."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from optuna.samplers import QMCSampler

from fmoe.errors import UserError
from fmoe.on_ray.tuning.suggest import Suggestions
from fmoe.tuning import search_space
from fmoe.tuning.domains import Sweep
from fmoe.tuning.search_space import Space
from fmoe.tuning.searchers import SearcherSpec, Values
from tests.extending.document import section
from tests.extending.studies import space_of, with_kind

CODE = section("A searcher of studies")
Sobol = CODE.Sobol


class Corners(SearcherSpec):
    """The low end of every range, then the high one."""

    in_order = True
    kind: Literal["corners"] = "corners"

    def trials(self, space: Values) -> Iterator[dict[str, Any]]:
        return (space.sample(Sweep(index)) for index in (0, 1))


def drawn(space: Space, count: int) -> list[dict[str, Any]]:
    suggestions = Suggestions(space, [], [], count)
    return [
        suggestions.under_way[suggestions.ask()["number"]].values
        for _ in range(suggestions.more)
    ]  # fmt: skip


RANGE = {"gate.temperature": {"uniform": [0.5, 4.0]}}


def test_one_that_draws_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_kind(monkeypatch, "searcher", Sobol)
    sobol = {"kind": "sobol", "scramble": False}
    space = space_of(tmp_path, searcher=sobol, space=RANGE, baseline=False)
    assert isinstance(Suggestions(space, [], [], 4).optuna.sampler, QMCSampler)
    assert len(drawn(space, 4)) == 4


def test_one_that_has_all_trials_in_order_is_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_kind(monkeypatch, "searcher", Corners)
    space = space_of(tmp_path, searcher={"kind": "corners"}, space=RANGE)
    assert space.most == 3
    assert drawn(space, 20) == [{}, {"gate.temperature": 0.5}, {"gate.temperature": 4.0}]
    with pytest.raises(UserError, match="searcher: corners, but pbt moves away"):
        space_of(tmp_path, searcher={"kind": "corners"}, scheduler={"kind": "pbt"}, space=RANGE)


def test_unknown_ones_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_kind(monkeypatch, "searcher", Sobol)
    file = space_of(tmp_path).source
    assert isinstance(search_space.load(file, searcher="sobol").study.searcher, Sobol)
    with pytest.raises(UserError, match=r"^--searcher bayes: .* tpe, nsga2, random, grid, sobol$"):
        search_space.load(file, searcher="bayes")
    with pytest.raises(UserError, match=r"space\.yaml: searcher: .*'grid', 'sobol'"):
        space_of(tmp_path, searcher={"kind": "bayes"})
