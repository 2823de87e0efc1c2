"""Which trials of a study keep their weights, and which of them are judged again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmoe.on_ray.session import Resources
from fmoe.storage.folder import Folder
from fmoe.tuning import search_space
from fmoe.tuning.trials import Ledger, Trial
from pipelines.study.claim import timed_out
from pipelines.study.finals import Finals
from tests.edited import identity
from tests.test_study import trial


def finals_of(folder: Path, **keys: Any) -> Finals:
    tree = {
        "recipe": "digits-whole",
        "space": {"gate.temperature": {"uniform": [1, 2]}},
        "baseline": False,
        "final": {"top": 2},
        **keys,
    }
    (folder / "space.yaml").write_text(json.dumps(tree))
    space = search_space.load(str(folder / "space.yaml"))
    ledger = Ledger(Folder.at(folder / "study"))
    display: Any = SimpleNamespace()
    return Finals(space, ledger, identity(), Resources(1, 0), display)


def test_a_front_that_becomes_smaller_finds_the_next_best_kept(tmp_path: Path) -> None:
    finals = finals_of(tmp_path, metrics={"val_robust": "max", "val_clean": "max"})
    front = [trial(n, 0.5 - n / 100, clean=0.5 + n / 100) for n in range(5)]
    behind = trial(5, 0.49, clean=0.2)
    kept = finals.worth_keeping([*front, behind])
    assert kept == {0, 1, 2, 3, 4}
    # 6 beats the whole front: the best of the rest by the first metric is the second finalist
    best = trial(6, 0.9, clean=0.9)
    entrants = [one.number for one in finals.entrants([*front, behind, best])]
    assert entrants == [6, 0]
    assert set(entrants) <= kept | {6}


def test_only_epochs_of_which_there_are_weights_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finals = finals_of(tmp_path)
    monkeypatch.setattr(
        "pipelines.study.finals.joint.checkpoints",
        lambda *_: SimpleNamespace(epochs=lambda: [1, 2, 3]),
    )
    one = trial(0, 0.9, 0.4, 0.6)  # 3 was trained and not reported, 0 is no longer kept
    assert finals.kept(one) == [1, 2]
    assert finals.best_epoch(one) == 2


@pytest.mark.parametrize(("at", "over"), [(50.0, False), (60.0, True)])
def test_the_time_of_earlier_tries_counts(tmp_path: Path, at: float, over: bool) -> None:
    space = finals_of(tmp_path, budget={"minutes": 1}).space
    trials = [Trial(0, {}, history=[{"val_robust": 0.1, "at": at}]), Trial(1, {})]
    assert timed_out(space, trials) is over
    assert not timed_out(finals_of(tmp_path).space, trials)
