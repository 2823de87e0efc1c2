"""To add a metric: a function of an epoch that was measured, and a line in `metrics.COMPUTED`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from fmoe import config
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.on_ray.tuning.schedulers import Schedulers
from fmoe.on_ray.tuning.suggest import Suggestions
from fmoe.storage.folder import Folder
from fmoe.training import Epoch, joint, metrics
from fmoe.training.expert_store import ExpertStore
from fmoe.tuning.search_space import Space
from fmoe.tuning.trials import Trial, ranked
from tests.conftest import SMALL
from tests.extending.document import section
from tests.extending.studies import space_of

CODE = section("A metric")
sureness = CODE.sureness


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setitem(metrics.COMPUTED, "val_sureness", sureness)


QUICK = [
    *SMALL,
    "experts.train.batch_size=32",
    "joint.batch_size=32",
    "experts.train.validation.attack={kind: fgsm, eps: 0.1}",
    "joint.validation.attack={kind: fgsm, eps: 0.1}",
]


@pytest.fixture(scope="module")
def store(few: Data, tmp_path_factory: pytest.TempPathFactory) -> ExpertStore:
    store = ExpertStore(Folder.at(tmp_path_factory.mktemp("experts")))
    settings = config.load("digits-whole", QUICK)
    for member in settings.experts.members:
        store.obtain(settings, member, few)
    return store


def epochs(settings: config.Config, few: Data, store: ExpertStore, run: Path) -> list[Epoch]:
    return list(joint.joint_epochs(settings, few, store, Folder.at(run)))


def test_every_epoch_reports_it(
    added: Callable[[], None], few: Data, store: ExpertStore, tmp_path: Path
) -> None:
    added()
    settings = config.load("digits-whole", QUICK)
    told = [epoch.metrics for epoch in epochs(settings, few, store, tmp_path)]
    model = joint.trained(settings, Folder.at(tmp_path), few.identity, 1)
    with torch.no_grad():
        sure = model(few.val.pixels()).exp().amax(1).mean().item()
    assert told[-1]["val_sureness"] == pytest.approx(sure, abs=1e-5)
    assert all(set(metrics.names()) <= epoch.keys() for epoch in told)
    resumed = [epoch.metrics for epoch in epochs(settings, few, store, tmp_path)]
    assert resumed == told


def test_checkpoints_without_it_are_not_gone_on_from(
    added: Callable[[], None], few: Data, store: ExpertStore, tmp_path: Path
) -> None:
    settings = config.load("digits-whole", QUICK)
    epochs(settings, few, store, tmp_path)
    added()
    with pytest.raises(UserError, match="lacks val_sureness: delete the checkpoints"):
        epochs(settings, few, store, tmp_path)


def test_a_study_is_after_it(
    added: Callable[[], None], few: Data, store: ExpertStore, tmp_path: Path
) -> None:
    """Hot gates make a mixture less sure of itself: what is smallest wins."""
    with pytest.raises(UserError, match="metrics: val_sureness is not reported"):
        after(tmp_path)
    added()
    space = after(tmp_path)
    assert Schedulers(space, []).goal["metric"] == "val_sureness"
    suggestions, trials = Suggestions(space, [], [], 3), list[Trial]()
    for _ in range(3):
        trial = suggestions.under_way[suggestions.ask()["number"]]
        run = tmp_path / str(trial.number)
        found = epochs(space.config(trial.values), few, store, run)
        trial.history, trial.status = [epoch.metrics for epoch in found], "finished"
        suggestions.tell(trial)
        trials.append(trial)
    least = {t.number: min(e["val_sureness"] for e in t.history) for t in trials}
    best = ranked(trials, space.study.metrics)[0]
    assert len(set(least.values())) == 3
    assert best.number == min(least, key=least.__getitem__)
    assert suggestions.optuna.best_value == least[best.number]


def after(folder: Path) -> Space:
    quick = (override.split("=", 1) for override in QUICK)
    return space_of(
        folder,
        set={path: yaml.safe_load(value) for path, value in quick} | {"joint.epochs": 1},
        metrics={"val_sureness": "min"},
        space={"gate.temperature": {"choice": [0.1, 1.0, 10.0]}},
        searcher={"kind": "grid"},
        baseline=False,
    )
