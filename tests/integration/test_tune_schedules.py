"""PBT and NSGA-II on real Ray Tune."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient

from fmoe import tracking
from fmoe.storage.folder import Folder
from fmoe.tuning.trials import Ledger
from tests.integration.conftest import Outcome
from tests.integration.spaces import space

Fmoe = Callable[..., Outcome]


def test_pbt_goes_on_from_better_weights(fmoe: Fmoe, ray_session: None, tmp_path: Path) -> None:
    file = space(
        tmp_path,
        {
            "gate.temperature": {"loguniform": [0.3, 3]},
            "joint.optimizer.lr": {"uniform": [0.01, 0.2]},
        },
        scheduler={"kind": "pbt", "every": 1, "quantile": 0.5},
        set={"joint.epochs": 4, "data.train_images": 160},
    )
    answer = fmoe("tune", file, "--trials", "4", "--json", "--name", "pbt").json
    assert answer["counts"]["finished"] == 4
    assert [trial["epochs"] for trial in answer["trials"]] == [4] * 4
    trials = Ledger(Folder.at(answer["study_dir"])).trials()
    changed = [trial for trial in trials if trial.changes]
    assert changed
    for trial in changed:
        last = trial.changes[-1]
        assert last["parent"] != trial.number
        assert trial.values == last["values"]
        parent = trials[last["parent"]]
        assert trial.history[0]["val_robust"] in [t.history[0]["val_robust"] for t in trials]
        assert len(parent.history) == 4


def test_a_front_of_two_metrics(fmoe: Fmoe, ray_session: None, tmp_path: Path) -> None:
    file = space(
        tmp_path,
        {"joint.optimizer.lr": {"loguniform": [0.001, 0.3]}},
        metrics={"val_clean": "max", "val_robust": "max"},
        searcher={"kind": "nsga2", "population": 2},
        scheduler={"kind": "asha", "grace": 1, "reduction": 2},
    )
    answer = fmoe("tune", file, "--trials", "4", "--json", "--name", "front").json
    assert answer["front"]
    assert sum(answer["counts"].values()) == 4
    client = MlflowClient(tracking.store_uri())
    artifacts = {item.path for item in client.list_artifacts(answer["run_id"], "plots")}
    assert "plots/2_pareto_front.png" in artifacts
    killed = [t for t in answer["trials"] if t["status"] == "pruned"]
    for trial in killed:
        assert client.get_run(trial["run_id"]).info.status == "KILLED"
