"""What MLflow's pages are given to show, in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from mlflow.tracking import MlflowClient

from fmoe import tracking
from fmoe.config import Config
from fmoe.data import Data
from fmoe.markdown import code
from fmoe.model_card import Figures
from fmoe.tracking import Tracker, curves, experiments, finishing, notes, registry, runs, tags
from fmoe.tracking.curves import Curves
from fmoe.tuning.search_space import load as load_space
from fmoe.tuning.trials import Trial
from pipelines import origin
from pipelines.study import story as study_story
from pipelines.training import story
from pipelines.training.run import Request
from tests.test_model_card import MARKDOWN, REPORT, html
from tests.test_names import NAMES, Elements


@pytest.fixture(scope="module")
def one_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(autouse=True)
def _one_store(one_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all of them: MLflow takes seconds to make one."""
    monkeypatch.setenv("FMOE_HOME", str(one_home))


@pytest.fixture
def tracker() -> Tracker:
    return Tracker.start("a", {}, {}, None)


def run(tracker: Tracker) -> Any:
    return tracking.client().get_run(tracker.run_id)


def note(tracker: Tracker) -> str:
    return str(run(tracker).data.tags.get(tags.NOTE))


# The experiment


def kind() -> str | None:
    experiment = experiments.find(tracking.client())
    assert experiment is not None
    found: str | None = experiment.tags.get(experiments.KIND)
    return found


def test_an_experiment_is_for_training(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made so; one of before becomes so, what somebody chose stays, and so does a server's."""
    assert kind() == "custom_model_development"
    store, number = tracker.store, run(tracker).info.experiment_id
    for before, after in (
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),
    ):
        store.set_experiment_tag(number, experiments.KIND, before)
        experiments.current(store)
        assert kind() == after
    store.set_experiment_tag(number, experiments.KIND, "")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(experiments, "is_own", lambda: False)
        experiments.current(store)
        assert kind() == ""
    experiments.current(store)
    assert kind() == "custom_model_development"


def test_the_page_is_in_the_view_of_training(tracker: Tracker) -> None:
    number = run(tracker).info.experiment_id
    assert tracker.page.startswith("fmoe ui, then http://127.0.0.1:5000/#/experiments/")
    place = f"/#/experiments/{number}/runs/{tracker.run_id}?workflowType=machine_learning"
    assert tracker.page.endswith(f", then http://127.0.0.1:5000{place}")


# Descriptions and data


def test_a_description_is_replaced_until_somebody_writes_another(tracker: Tracker) -> None:
    tracker.describe("one")
    tracker.describe("two")
    assert note(tracker) == f"two\n\n{notes.MARK}\n"
    tracker.store.set_tag(tracker.run_id, tags.NOTE, "my own")
    tracker.describe("three")
    assert note(tracker) == "my own"
    assert not tracker.owed


def test_a_long_description_ends_with_a_paragraph() -> None:
    text = notes.ours("\n\n".join(["x" * 1000] * 9))
    assert len(text) <= 5000
    assert text == "\n\n".join([*["x" * 1000] * 4, f"{notes.MARK}\n"])
    assert len(notes.ours("y" * 9000)) <= 5000


def test_data_are_datasets(tracker: Tracker, digits: Data) -> None:
    tracker.log_data(digits)
    again = Tracker.start("a", {}, {}, tracker.run_id)
    again.log_data(digits)
    found = {one.dataset.name: one for one in run(tracker).inputs.dataset_inputs}
    assert set(found) == {"digits/train", "digits/validation", "digits/test"}
    assert len(run(tracker).inputs.dataset_inputs) == 3
    for part, context, images in (
        ("train", "training", digits.train),
        ("validation", "validation", digits.val),
        ("test", "testing", digits.test),
    ):
        one = found[f"digits/{part}"]
        assert {tag.key: tag.value for tag in one.tags} == {"mlflow.data.context": context}
        profile = json.loads(one.dataset.profile)
        assert (profile["num_rows"], profile["shape"]) == (len(images), [1, 8, 8])
        assert profile["classes"] == 10
    assert digits.test_digest.startswith(found["digits/test"].dataset.digest)
    assert len({one.dataset.digest for one in found.values()}) == 3


def test_another_cut_of_the_same_images_is_another_dataset(digits: Data) -> None:
    from fmoe import data
    from fmoe.tracking.datasets import inputs

    other = data.load("digits", val_images=100)
    ours, theirs = (
        {one.dataset.name: one.dataset.digest for one in inputs(each)} for each in (digits, other)
    )
    assert ours["digits/test"] == theirs["digits/test"]
    assert ours["digits/train"] != theirs["digits/train"]
    assert ours["digits/validation"] != theirs["digits/validation"]


CALLS = ("set_tag", "log_inputs", "log_dict", "log_batch", "get_run")


def away(*_: object, **__: object) -> None:
    raise MlflowException("Connection refused")


def test_what_an_outage_kept_back_is_sent_afterwards(
    tracker: Tracker, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        for call in CALLS:
            patched.setattr(MlflowClient, call, away)
        tracker.describe("early")
        tracker.describe("late")
        tracker.tag("fmoe.error", "x")
        tracker.log_data(digits)
        tracker.log_expert("fgsm-0", {"val_clean": 0.5}, 0)
        tracker.log({"val_clean": 0.25}, 0)
        assert not tracker.flush()
    assert tracker.finish("FINISHED")
    found = run(tracker)
    assert found.data.tags["fmoe.error"] == "x"
    assert "late" in note(tracker)
    assert len(found.inputs.dataset_inputs) == 3
    assert found.data.metrics == {"val_clean": 0.25}
    assert kept(tracker)["fgsm-0"]["epochs"] == [{"epoch": 0, "val_clean": 0.5}]


def test_what_a_server_will_never_take_is_not_waited_for(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("no such endpoint", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "set_tag", refuse)
    tracker.tag("a", "b")
    assert tracker.flush()
    assert not tracker.owed


# Experts


def kept(tracker: Tracker) -> dict[str, Any]:
    place = tracker.store.download_artifacts(tracker.run_id, curves.FILE)
    tree: dict[str, Any] = json.loads(Path(place).read_text())
    return tree


def test_experts_curves_are_an_artifact(tracker: Tracker) -> None:
    """Found again by a later try, which adds to them."""
    tracker.log_expert("pgd-0", {"val_clean": 0.25}, 1)
    tracker.log_expert("pgd-0", {"val_clean": 0.125}, 0)
    tracker.log_expert("pgd-0", {"val_clean": 0.75}, 0)  # told before
    tracker.finish("FAILED")
    again = Tracker.start("a", {}, {}, tracker.run_id)
    again.log_expert("pgd-0", {"val_clean": 0.25}, 1)
    again.log_expert("pgd-0", {"val_clean": 0.5}, 2)
    again.told_experts({"pgd-0": {"from": "training", "best_epoch": 2}})
    again.finish("FINISHED")
    values = [0.125, 0.25, 0.5]
    epochs = [{"epoch": epoch, "val_clean": value} for epoch, value in enumerate(values)]
    assert kept(tracker) == {"pgd-0": {"from": "training", "best_epoch": 2, "epochs": epochs}}
    assert run(tracker).data.metrics == {}


def test_curves_are_not_sent_with_every_epoch(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    usual = MlflowClient.log_dict

    def counted(self: MlflowClient, *given: Any) -> None:
        sent.append(given)
        usual(self, *given)

    monkeypatch.setattr(MlflowClient, "log_dict", counted)
    for epoch in range(5):
        tracker.log_expert("pgd-0", {"val_clean": 0.5}, epoch)
    assert len(sent) == 1
    monkeypatch.setattr(runs, "CURVES_EVERY", 0.0)
    tracker.log_expert("pgd-0", {"val_clean": 0.5}, 5)
    assert len(sent) == 2
    tracker.finish("FINISHED")
    assert len(kept(tracker)["pgd-0"]["epochs"]) == 6


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"a": 3}', b'{"a": {"epochs": [3]}}', b'{"a": {"epochs": [{}]}}',
     b'{"a": {"epochs": [{"epoch": "x"}]}}', b'{"a": {"epochs": [{"epoch": 0, "b": []}]}}'],
)  # fmt: skip
def test_curves_that_are_none(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Curves.read(data)


# The registry


def version(name: str, said: dict[str, str]) -> str:
    store = tracking.client()
    if not store.search_registered_models(f"name = '{name}'"):
        store.create_registered_model(name)
    made = store.create_model_version(name, "file:///nowhere", tags={"fmoe.sha256": "0", **said})
    registry.describe(store, name, int(made.version))
    return str(made.version)


def description(name: str, number: str) -> str:
    return str(tracking.client().get_model_version(name, number).description)


def at_training(report: dict[str, Any]) -> dict[str, str]:
    figures = {"clean": report["clean"], **report["robust"], "worst_case": report["worst_case"]}
    return tags.tested(figures) | tags.tested_on(report)


def test_a_version_tells_its_figures(tmp_path: Path, tracker: Tracker) -> None:
    number = version("m", at_training(REPORT))
    text = description("m", number)
    assert "**45.0% worst case** (38.3 to 51.9%) under ℓ∞ ε = 8/255" in text
    assert "| `fgsm` &nbsp; | 60.0% &nbsp; |" in text
    assert "By training's own evaluation" in text
    assert f"fmoe.load('models:/m/{number}')" in text
    about = tracking.client().get_registered_model("m").description
    assert "hold up against adversarial examples" in about
    # a later evaluation
    report = REPORT | {"worst_case": 0.25, "flags": ["random: x"], "full": True, "revision": "r"}
    (tmp_path / "index.html").write_text("x")
    found = registry.Version("m", int(number), "0", None)
    registry.record_evaluation(found, tracker.run_id, report, tmp_path)
    text = description("m", number)
    assert "**25.0% worst case**" in text
    assert "- `random: x`" in text
    assert "(full protocol)" in text
    # a promotion
    why = {"since": "2026-01-01", "reason": "forced: demo", "despite": "flag x"}
    noted = {f"{tags.of_alias('champion')}{key}": value for key, value in why.items()}
    assert registry.crown("m", int(number), "champion", noted) == int(number)
    told = "Made `champion` at `2026-01-01`: `forced: demo`, despite `flag x`."
    assert told in description("m", number)


def test_what_somebody_wrote_in_the_registry_stays() -> None:
    store = tracking.client()
    store.create_registered_model("theirs", description="ours")
    number = version("theirs", {})
    store.update_model_version("theirs", number, "my own")
    registry.describe(store, "theirs", int(number))
    assert description("theirs", number) == "my own"
    assert store.get_registered_model("theirs").description == "ours"


@pytest.mark.parametrize("kind", [*NAMES, *MARKDOWN])
def test_tags_of_others_make_no_markdown(kind: str) -> None:
    name = {**NAMES, **MARKDOWN}[kind]

    def page(text: str) -> Elements:
        report = REPORT | {"flags": [text], "norm": text}
        said = at_training(report) | {
            "fmoe.eval.at": text,
            "fmoe.champion.since": text,
            "fmoe.champion.reason": text,
            "fmoe.champion.despite": text,
        }
        told = notes.of_version(text.replace("/", "|"), 1, said)
        return Elements(html(f"---\n---\n{told}"))

    assert page(name).elements == page("qqq").elements


@pytest.mark.parametrize(
    "said",
    [{"fmoe.test_clean": "x"}, {"fmoe.eval.clean": "0.5"}, {"fmoe.tested.flags": "[" * 4000},
     {"fmoe.eval.flags": "3"}, {"fmoe.eval.images": "-1"}, {"fmoe.tested.eps": "nan"}],
)  # fmt: skip
def test_tags_that_make_no_sense_are_left_out(said: dict[str, str]) -> None:
    text = notes.of_version("m", 1, said)
    assert "worst case" not in text
    assert "fmoe.load('models:/m/1')" in text
    assert "worst case" in notes.of_version("m", 1, {**at_training(REPORT), "fmoe.eval.clean": "x"})


# Who, with which command


def test_who_and_with_which_command(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "52e376f282828dfa0f6a36a2bd941c288da36537"
    monkeypatch.delenv("FMOE_JOB_ID", raising=False)
    monkeypatch.setenv("LOGNAME", "anna")
    labels = origin.labels("fmoe train digits", f"{commit}-dirty-0123")
    assert labels == {
        "mlflow.user": "anna",
        "mlflow.source.name": "fmoe train digits",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": "true",
    }
    monkeypatch.setenv("FMOE_JOB_ID", "raysubmit_x")
    labels = origin.labels("fmoe train digits", "unknown-0123456789ab")
    assert labels["mlflow.source.type"] == "JOB"
    assert not [name for name in labels if "git" in name]


def test_the_command_again() -> None:
    request = Request("my recipe.yaml", overrides=["a=[1, 2]", "b=3"], name="n", gpu=False)
    told = "fmoe train 'my recipe.yaml' --set 'a=[1, 2]' --set b=3 --name n --cpu"
    assert request.command.replace("\\\n  ", "") == told
    assert len(request.command.splitlines()) == 5


# Stories


def test_a_training_tells_its_story(small: Config, digits: Data) -> None:
    answer = {
        "seconds": {"pool": 12.3, "joint": 45.6, "evaluate": 7.8},
        "model_uri": "models:/m/3",
        "best_epoch": 1,
        "epochs": 2,
        "validation": {"val_clean": 0.9, "val_robust": 0.4},
    }
    text = story.ended(small, digits, "fmoe train x", REPORT, answer)
    first = text.splitlines()[0]
    figures = Figures.of(REPORT)
    assert figures is not None
    assert first == figures.headline()
    assert "Registered as `models:/m/3`." in text
    assert "Epoch 2 of 2 was chosen, by `val_robust` on 32 validation images (40.0%)." in text
    assert "Took: experts 12 s, joint training 46 s, evaluation 8 s." in text
    assert "```sh\nfmoe train x\n```" in text
    assert f"{len(digits.train):,} training" in text
    assert len(notes.ours(text)) < notes.LONGEST  # nothing is cut
    before = story.begun(small, "r`x", digits, "fmoe train x")
    assert before.startswith(f"Recipe {code('r`x')} on `digits`. Not finished yet")


def test_a_study_and_its_trials_tell_theirs(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "recipe: digits\nbudget: {trials: 2}\nspace:\n  gate.temperature: {choice: [1, 2]}\n"
    )
    text = study_story.begun(load_space(str(file)), "s", "fmoe tune s")
    assert "Recipe `digits`; `val_robust` (max); 2 trials" in text
    assert "| `gate.temperature` |" in text
    trial = Trial(3, {"gate.temperature": 2}, status="pruned", history=[{"val_robust": 0.5}])
    told = study_story.of_trial("s", trial, None)
    assert told == "Trial 3 of study `s`: `gate.temperature = 2`.\n\nPruned, 1 epoch."
    failed = Trial(4, {}, status="failed", error="`x`\nboom")
    assert "Error: `\\x60x\\x60\\nboom`" in study_story.of_trial("s", failed, None)
    judged = study_story.of_trial("s", trial, ("test", Figures.of(REPORT)))
    assert judged.startswith("On the test images: **45.0% worst case**")


def test_a_run_that_ends_keeps_what_it_told(tracker: Tracker) -> None:
    with finishing(tracker):
        tracker.describe("told")
    assert "told" in note(tracker)
    assert run(tracker).info.status == "FINISHED"
