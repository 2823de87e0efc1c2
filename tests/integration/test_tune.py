"""Studies on real Ray Tune, MLflow and files; each of them is small."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow.tracking import MlflowClient

from fmoe import tracking
from fmoe.data import Data
from fmoe.errors import UserError
from fmoe.storage.folder import Folder
from fmoe.tuning.trials import Ledger
from pipelines.study.finals import Finals
from tests.data_states import write_shards
from tests.integration.conftest import Outcome
from tests.integration.spaces import space
from tests.integration.test_errors import refused
from tests.published import write_hugging_face_of

Fmoe = Callable[..., Outcome]


@dataclass(frozen=True)
class Studied:
    """A study whose test images could not be read at first, and whose training images were others
    at the end of a second try. home: the FMOE_HOME it ran under."""

    home: Path
    folder: Path
    refusal: Outcome
    replaced: Outcome
    before: dict[int, float | None]
    answer: dict[str, Any]


@pytest.fixture(scope="module")
def studied_once(
    ray_session: None, tmp_path_factory: pytest.TempPathFactory, digits: Data
) -> Studied:
    """A grid of four and the recipe; two of the five have a learning rate that diverges."""
    from pipelines.study.run import Request, run

    home = tmp_path_factory.mktemp("studied")
    file = space(
        home,
        {
            "experts.roles.pgd.count": {"choice": [1, 2]},
            "joint.optimizer.lr": {"choice": [0.1, 100]},
        },
        recipe="cifar10-small",
        searcher={"kind": "grid"},
        set={
            "precision": "float32",
            "data.val_images": 40,
            "data.train_images": 96,
            "experts.roles.fgsm.count": 0,
            "joint.attack": {"kind": "fgsm"},
            # with a rate of 100 weights grow a hundredfold every step
            "joint.optimizer": {"weight_decay": 1, "schedule": {"kind": "constant"}},
            "joint.batch_size": 8,
        },
    )
    write_hugging_face_of(home / "data" / "cifar10", train=136, test=16)
    test_file = next((home / "data" / "cifar10").glob("test-*.parquet"))
    content = test_file.read_bytes()

    def study(resume: bool) -> dict[str, Any]:
        return run(Request(str(file), name="small", resume=resume, data_dir=str(home / "data")))

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FMOE_HOME", str(home))
        # mlflow sets it when another test of this process gives it a store
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        test_file.write_bytes(b"not to be read")
        with pytest.raises(ValueError, match=r"test-.*\.parquet") as caught:
            study(resume=False)
        ledger = Ledger(Folder.at(home / "studies" / "small"))
        ended = {trial.number: trial.ended for trial in ledger.trials()}
        test_file.write_bytes(content)
        (train_file,) = (home / "data" / "cifar10").glob("train-*.parquet")
        content = train_file.read_bytes()
        choose = Finals.choose

        def while_files_are_replaced(*given: Any) -> Any:
            shutil.copy(merged(shards(home / "others", "train")), train_file)
            return choose(*given)

        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(Finals, "choose", while_files_are_replaced)
            with pytest.raises(UserError) as refused_at_the_end:
                study(resume=True)
        train_file.write_bytes(content)
        answer = study(resume=True)
    refusal, replaced = (Outcome(2, "", str(e.value)) for e in (caught, refused_at_the_end))
    return Studied(home, home / "studies" / "small", refusal, replaced, ended, answer)


@pytest.fixture
def studied(studied_once: Studied, monkeypatch: pytest.MonkeyPatch) -> Studied:
    monkeypatch.setenv("FMOE_HOME", str(studied_once.home))
    return studied_once


def test_the_search_needs_no_test_images(studied: Studied) -> None:
    """Until the winner is known nothing opens their file: all trials had ended by then."""
    assert "not a readable Parquet file" in studied.refusal.err
    assert sorted(studied.before) == [0, 1, 2, 3, 4]
    assert all(ended is not None for ended in studied.before.values())


def test_resume_repeats_no_trial_that_has_ended(studied: Studied) -> None:
    ledger = Ledger(Folder.at(studied.folder))
    assert {trial.number: trial.ended for trial in ledger.trials()} == studied.before


def test_a_diverging_trial_fails_alone(studied: Studied) -> None:
    trials = studied.answer["trials"]
    assert [trial["status"] for trial in trials] == [
        "finished",
        "finished",
        "failed",
        "finished",
        "failed",
    ]
    for trial in trials:
        if trial["status"] == "failed":
            assert trial["values"]["joint.optimizer.lr"] == 100
            assert trial["error"].startswith("NonFiniteLoss: the loss is nan at step")
            assert trial["metrics"] is None
        else:
            assert trial["epochs"] == 2


def test_answer_has_what_was_promised(studied: Studied) -> None:
    answer = studied.answer
    best = answer["best"]
    assert {"study", "trials", "best"} <= answer.keys()
    assert {"trial", "config", "metrics", "model_uri"} <= best.keys()
    assert best["trial"] in (0, 1, 3)
    assert best["config"]["experts"]["backbone"]["width"] == 4
    assert set(best["metrics"]) == {"val_robust", "validation", "test"}
    assert set(best["metrics"]["validation"]) == {"clean", "pgd", "fgsm", "worst_case"}
    assert answer["counts"] == {"finished": 3, "pruned": 0, "stopped": 0, "failed": 2}
    assert json.loads((studied.folder / "result.json").read_text()) == answer


def test_each_distinct_expert_was_trained_once(studied: Studied) -> None:
    """benign-0, pgd-0 and pgd-1 for five trials that ask for 2 to 3 experts each."""
    stored = [p for p in (studied.home / "experts").iterdir() if (p / "manifest.json").exists()]
    experts = studied.answer["experts"]
    assert len(stored) == experts["trained"] == 3
    assert experts["trained"] + experts["found"] == 2 + 2 + 2 + 3 + 3
    assert experts["seconds_saved"] > 0


def test_trials_share_processes(studied: Studied) -> None:
    """Two of them for five trials, also after one has failed."""
    trials = Ledger(Folder.at(studied.folder)).trials()
    assert len(trials) == 5
    assert len({trial.process for trial in trials}) <= 2


def test_mlflow_tells_how_each_trial_ended(studied: Studied) -> None:
    client = MlflowClient(tracking.store_uri())
    parent = client.get_run(studied.answer["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["fmoe.git_revision"]
    assert parent.data.params["searcher"] == '{"kind":"grid"}'
    assert "joint.optimizer.lr" in str(parent.data.params)
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id, "plots")}
    told, best = parent.data.tags["mlflow.note.content"], studied.answer["best"]
    assert told.startswith(f"Trial {best['trial']}: **")
    assert f"Registered as `{best['model_uri']}`" in told
    assert {one.dataset.name for one in parent.inputs.dataset_inputs} == {
        "cifar10/train", "cifar10/validation",
    }  # fmt: skip
    assert {"plots/1_best_so_far.png", "plots/2_parallel_coordinates.png"} <= artifacts
    for trial in studied.answer["trials"]:
        run = client.get_run(trial["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["mlflow.source.name"] == parent.data.tags["mlflow.source.name"]
        assert f"Trial {trial['trial']} of study" in run.data.tags["mlflow.note.content"]
        wanted = {"finished": "FINISHED", "failed": "FAILED"}[trial["status"]]
        assert run.info.status == wanted
        assert json.loads(run.data.params.get("joint.optimizer.lr", "null")) == trial["values"].get(
            "joint.optimizer.lr"
        )
        if trial["status"] == "finished":
            history = client.get_metric_history(trial["run_id"], "val_robust")
            assert sorted(metric.step for metric in history) == [0, 1]
        else:
            assert run.data.tags["fmoe.error"] == trial["error"]


def test_the_winner_is_the_candidate(studied: Studied, fmoe: Fmoe, tmp_path: Path) -> None:
    version = MlflowClient(tracking.store_uri()).get_model_version_by_alias(
        "fmoe-cifar10", "candidate"
    )
    best = studied.answer["best"]
    assert best["model_uri"] == f"models:/fmoe-cifar10/{version.version}"
    assert version.tags["fmoe.study"] == "small"
    assert version.tags["fmoe.trial"] == str(best["trial"])
    assert version.run_id == best["run_id"]
    pulled = fmoe("pull", best["model_uri"], "--to", tmp_path / "model", "--json").json
    assert pulled["digest"] == best["digest"]


def test_parquet_has_every_epoch(studied: Studied) -> None:
    rows = pq.read_table(studied.folder / "study.parquet").to_pandas()
    assert len(rows) == 3 * 2 + 2
    assert set(rows[rows.status == "failed"]["value.joint.optimizer.lr"]) == {100}
    finished = rows[rows.status == "finished"]
    assert finished["val_robust"].between(0, 1).all()
    assert (finished.groupby("trial")["epoch"].apply(list).map(str) == "[0.0, 1.0]").all()


def test_only_the_owner_can_read_the_study(studied: Studied) -> None:
    assert studied.folder.stat().st_mode & 0o077 == 0
    pickles = [p for p in studied.home.rglob("*") if p.suffix in (".pkl", ".pickle")]
    assert pickles == []


def test_studies_are_listed_and_shown(studied: Studied, fmoe: Fmoe) -> None:
    (listed,) = fmoe("studies", "list", "--json").json["studies"]
    assert (listed["study"], listed["finished"]) == ("small", True)
    shown = fmoe("studies", "show", "small", "--json").json
    order = [trial["trial"] for trial in shown["trials"]]
    assert sorted(order) == [0, 1, 2, 3, 4]
    scores = [trial["metrics"]["val_robust"] for trial in shown["trials"][:3]]
    assert scores == sorted(scores, reverse=True)
    best = fmoe("studies", "best", "small", "--json").json
    assert best["trial"] == studied.answer["best"]["trial"]
    assert "NonFiniteLoss" in fmoe("studies", "show", "small").out
    refused(fmoe("studies", "best", "nonesuch"), "nonesuch: no such study")


def shards(folder: Path, changed: str = "") -> Path:
    """The study's images in other files; changed: of this part one label is another."""
    for part, count, seed in (("train", 136, 2), ("test", 16, 3)):
        write_shards(folder / "cifar10", part, count, seed, part == changed)
    return folder


def merged(folder: Path) -> Path:
    """The training images of two shards in one file."""
    table = pq.read_table(sorted((folder / "cifar10").glob("train-*")))
    pq.write_table(table, folder / "whole.parquet")
    return folder / "whole.parquet"


def without(part: str, folder: Path) -> Path:
    for file in (shards(folder) / "cifar10").glob(f"{part}-*"):
        file.unlink()
    return folder


FINISHED: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "same in another layout": (shards, None),
    "other training labels": (lambda f: shards(f, "train"), "has other training images or labels"),
    "other test labels": (lambda f: shards(f, "test"), "has other test images or labels"),
    "test files alone": (lambda f: without("train", f), "no train-*.parquet"),
    "training files alone": (lambda f: without("test", f), "no test-*.parquet"),
    "gone": (lambda f: f / "nowhere", "no such data folder"),
}


def resume(studied: Studied, fmoe: Fmoe, data_dir: Path, *more: str) -> Outcome:
    file = studied.home / "small.yaml"
    return fmoe("tune", file, "--name", "small", "--trials", "5", "--resume", "--json",
                "--data-dir", data_dir, *more)  # fmt: skip


@pytest.mark.parametrize("state", FINISHED)
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of the version before"])
def test_a_finished_study_is_answered_for_its_data_alone(
    studied: Studied, fmoe: Fmoe, tmp_path: Path, state: str, recorded: bool
) -> None:
    write, differs = FINISHED[state]
    record = studied.folder / "data.json"
    content = record.read_bytes()
    if not recorded:
        record.unlink()
    try:
        outcome = resume(studied, fmoe, write(tmp_path))
    finally:
        record.write_bytes(content)
    if differs is None:
        assert outcome.json == studied.answer
    elif "has other" in differs:
        said = differs if recorded else "has other images or labels"
        refused(outcome, str(studied.folder), said, "--data-dir", "--name")
    else:
        refused(outcome, differs, "result.json")


def test_files_that_are_replaced_during_a_search_do_not_judge_its_winner(
    studied: Studied,
) -> None:
    assert "studies/small: was made from cifar10" in studied.replaced.err
    assert "has other training images or labels: give the data" in studied.replaced.err


def test_a_finished_study_is_not_begun_again(studied: Studied, fmoe: Fmoe) -> None:
    command = ["tune", studied.home / "small.yaml", "--name", "small", "--trials", "5"]
    refused(fmoe(*command), "study small is there with 5 of 5 trials", "--resume", "--name")
    refused(fmoe(*command, "--set", "seed=1", "--resume"), "is a study of other settings")


def test_a_model_of_a_small_set_is_evaluated(studied: Studied, fmoe: Fmoe, tmp_path: Path) -> None:
    """No validation split of the default's 5,000 can be cut out of 136 images; and by test files
    alone, which its card knows."""
    uri = studied.answer["best"]["model_uri"]
    for folder in (studied.home / "data", without("train", tmp_path)):
        answer = fmoe("evaluate", uri, "--attacks", "fgsm", "--data-dir", folder, "--json").json
        assert answer["images"] == 16
        assert answer["recorded"] == uri
        assert answer["test_digest"] == answer["trained_on_test"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--workers-per-trial", "64"], ["--workers-per-trial 64", "2 CPUs"]),
        (["--gpus-per-worker", "0.5"], ["0 GPUs"]),
        (["--resume"], ["--resume: there is no study"]),
        (["--scheduler", "pbt"], ["experts.roles.pgd.count: pbt changes a trial"]),
        (["--searcher", "nsga2"], ["give two metrics"]),
        (["--trials", "0"], ["--trials"]),
        (["--set", "joint.epoch=3"], ["joint", "epoch"]),
        (["--name", "../x"], ["--name"]),
    ],
)
def test_refused_at_once(
    fmoe: Fmoe, ray_session: None, tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    file = space(tmp_path, {"experts.roles.pgd.count": {"choice": [1, 2]}})
    refused(fmoe("tune", file, *arguments), *parts)


def test_pbt_takes_several_workers_no_further(fmoe: Fmoe, tmp_path: Path) -> None:
    file = space(tmp_path, {"gate.temperature": {"uniform": [0.5, 2]}}, scheduler={"kind": "pbt"})
    refused(fmoe("tune", file, "--workers-per-trial", "2"), "pbt works with one worker a trial")
