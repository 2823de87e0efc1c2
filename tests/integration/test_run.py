"""The main job on real digits, Ray processes and an MLflow store: what a finished run leaves."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from mlflow.tracking import MlflowClient

import fmoe as library
from fmoe import config, data, model_card, model_folder, tracking
from fmoe.evaluation import evaluate
from fmoe.storage.folder import Folder
from fmoe.training import joint
from tests.integration.conftest import CHUNK, EPOCHS, Outcome, Trained

PLOTS = ("1_training_curves", "2_gate_weights", "3_adversarial_images", "4_experts")


def test_answer_has_the_contract_keys(trained: Trained) -> None:
    answer = trained.answer
    assert {"run_dir", "run_id", "model_uri", "test", "seconds"} <= answer.keys()
    assert answer["test"].keys() == {"clean", "fgsm", "pgd"}
    assert answer["seconds"].keys() == {"pool", "joint", "evaluate"}
    assert answer["model_uri"] == "models:/fmoe-digits/1"


def test_training_learned(trained: Trained) -> None:
    """The last epoch by far; of the one that is chosen, by 96 images and thus by chance (another
    CPU rounds otherwise and chooses another), three times chance."""
    assert trained.answer["test_last_epoch"]["clean"] > 0.5
    test = trained.answer["test"]
    assert test["clean"] > 0.3 > 0.1 < test["pgd"] <= test["clean"]


def test_mlflow_run_is_complete(trained: Trained) -> None:
    run = MlflowClient(tracking.store_uri()).get_run(trained.answer["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["experts.backbone.width"] == "4"
    assert run.data.params["joint.epochs"] == str(EPOCHS)
    assert run.data.tags["fmoe.data_digest"] == data.load("digits").digest
    assert len(run.data.tags["fmoe.git_revision"]) >= 7
    metrics = run.data.metrics
    assert metrics["test_pgd"] == pytest.approx(trained.answer["test"]["pgd"])
    assert {"train_loss", "val_clean", "val_robust", "gate_weight_0"} <= metrics.keys()
    assert not [name for name in metrics if name.startswith("expert/")]


def test_no_worker_imports_mlflow(trained: Trained) -> None:
    """It would be seconds of the start of each; those of other nodes that watch their node do."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    imported = [file.read_text(errors="replace") for file in logs.glob("worker-*.err")]
    of_training = [lines for lines in imported if re.search(r"\| +ray\.train$", lines, re.M)]
    assert len(of_training) >= 3, "two workers and their controller"
    assert not [lines for lines in of_training if re.search(r"\| +mlflow$", lines, re.M)]


def test_every_epoch_is_logged_once(trained: Trained) -> None:
    client = MlflowClient(tracking.store_uri())
    history = client.get_metric_history(trained.answer["run_id"], "val_robust")
    assert [metric.step for metric in history] == list(range(EPOCHS))


def test_artifacts_are_there(trained: Trained) -> None:
    client = MlflowClient(tracking.store_uri())
    run_id = trained.answer["run_id"]
    assert {"environment.txt", "config.yaml", "evaluation.json", "plots"} <= {
        item.path for item in client.list_artifacts(run_id)
    }
    assert [item.path for item in client.list_artifacts(run_id, "plots")] == [
        f"plots/{name}.png" for name in PLOTS
    ]
    folder = Path(trained.answer["run_dir"])
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["robust"]["pgd"] == trained.answer["test"]["pgd"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    for name in PLOTS:
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_the_run_tells_its_story(trained: Trained) -> None:
    """The figures first, by whom and how it was made, on which data; each expert's curves apart."""
    client, answer = MlflowClient(tracking.store_uri()), trained.answer
    run = client.get_run(answer["run_id"])
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    told = run.data.tags["mlflow.note.content"]
    assert told.startswith(f"**{100 * answer['worst_case']:.1f}% worst case**")
    assert f"Registered as `{answer['model_uri']}`." in told
    assert "fmoe train digits-whole \\\n  --set experts.backbone.width=4 \\\n" in told
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.source.name"] == "fmoe train digits-whole"
    found = {one.dataset.name: one.tags[0].value for one in run.inputs.dataset_inputs}
    contexts = ("training", "validation", "testing")
    assert found == dict(zip(("digits/train", "digits/validation", "digits/test"), contexts,
                             strict=True))  # fmt: skip
    curves = json.loads(
        Path(client.download_artifacts(answer["run_id"], "experts/curves.json")).read_text()
    )
    assert curves.keys() == {"benign-0", "fgsm-0", "pgd-0"}
    for expert in curves.values():
        assert expert["from"] == "training"
        assert "val_robust" in expert["epochs"][0]


def test_model_card_is_beside_the_weights(trained: Trained) -> None:
    folder = Folder.at(trained.answer["run_dir"]) / "model"
    _, settings, card = model_folder.load_model(folder)
    assert folder.read("README.md").decode() == model_card.render(card, settings)
    version = MlflowClient(tracking.store_uri()).get_model_version("fmoe-digits", "1")
    assert f"{100 * trained.answer['worst_case']:.1f}% worst case" in version.description
    model_id = version.source.removeprefix("models:/")
    logged = MlflowClient(tracking.store_uri()).get_logged_model(model_id)
    assert logged.tags["mlflow.note.content"] == version.description


def test_alias_and_tags(trained: Trained) -> None:
    version = MlflowClient(tracking.store_uri()).get_model_version_by_alias(
        "fmoe-digits", "candidate"
    )
    assert int(version.version) == 1
    assert version.tags["fmoe.sha256"] == trained.answer["digest"]
    assert float(version.tags["fmoe.test_pgd"]) == pytest.approx(
        trained.answer["test"]["pgd"], abs=1e-4
    )


def test_registered_program_is_pt2_and_agrees(trained: Trained) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking.store_uri())
    program = mlflow.pytorch.load_model(trained.answer["model_uri"])
    x = data.load("digits").test.pixels()[:5].contiguous()
    model = library.load(trained.answer["model_uri"])
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=0)
    folder = mlflow.artifacts.download_artifacts(trained.answer["model_uri"])
    assert not [p for p in Path(folder).rglob("*") if p.suffix in {".pkl", ".pickle", ".pth"}]


def test_the_same_command_again_gives_the_same_result(
    trained: Trained, fmoe: Callable[..., Outcome]
) -> None:
    from tests.integration.conftest import TRAIN

    again = fmoe("train", "digits-whole", "--name", "small", "--workers", "2", "--json", *TRAIN)
    assert again.code == 0
    assert again.json == trained.answer


def test_another_configuration_under_the_same_name_is_refused(
    trained: Trained, fmoe: Callable[..., Outcome]
) -> None:
    other = fmoe("train", "digits-whole", "--name", "small", "--set", "seed=5")
    assert (other.code, len(other.err.splitlines())) == (2, 1)
    assert "--name" in other.err


def test_evaluation_is_the_same_for_any_number_of_workers(
    trained: Trained, fmoe: Callable[..., Outcome]
) -> None:
    """And in this process without Ray; two chunks of images."""
    run, uri = trained.answer["run_dir"], trained.answer["model_uri"]
    images = CHUNK + 6
    one = fmoe("evaluate", run, "--limit", images, "--json").json
    two = fmoe("evaluate", uri, f"--limit={images}", "--workers=2", "--json").json
    for answer in (one, two):
        for key in ("seconds", "attack_seconds", "model", "at"):
            del answer[key]
    assert two.pop("recorded") == "models:/fmoe-digits/1"
    # means of logits and gradients: a worker of another number of threads adds up in another order
    means, others = numbers(one.pop("mixture")), numbers(two.pop("mixture"))
    assert others == pytest.approx(means, rel=1e-5)
    assert one == two
    assert {"clean", "robust", "worst_case", "flags", "images"} <= one.keys()
    test = data.load("digits").test[:images]
    attacks = ["fgsm", "pgd", "mixture"]  # all that count; sweeps give curves
    model = library.load(run)
    found = evaluate(model, test.images, test.labels, attacks=attacks, eps=0.1, batch_size=CHUNK)
    assert one["robust"] == found.robust


def numbers(value: Any) -> dict[str, float]:
    """Those of nested lists and dictionaries, by their path."""
    if isinstance(value, int | float):
        return {"": value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = ((key, part) for key, part in items if not isinstance(part, str))
    return {f"{key}.{path}": n for key, part in parts for path, n in numbers(part).items()}


@pytest.mark.filterwarnings("ignore::UserWarning:foolbox", "ignore::UserWarning:torchattacks")
def test_independent_libraries_agree_on_robust_accuracy(
    trained: Trained, fmoe: Callable[..., Outcome]
) -> None:
    """PGD-20 of torchattacks and foolbox within 1.5 points, any iterate counting for all three."""
    from benchmarks.agreement import by_foolbox, by_torchattacks

    test = data.load("digits").test
    batch = test.pixels(), test.labels
    model = library.load(trained.answer["model_uri"])
    ours = fmoe("evaluate", trained.answer["run_dir"], "--attacks", "pgd", "--json").json
    torch.manual_seed(0)
    for peer in (by_torchattacks, by_foolbox):
        assert abs(peer(model, *batch, 0.1, "linf") - ours["robust"]["pgd"]) <= 0.015


def test_pulled_model_in_a_fresh_process_gives_the_same_logits(
    trained: Trained, fmoe: Callable[..., Outcome], tmp_path: Path
) -> None:
    pulled = fmoe("pull", "models:/fmoe-digits@candidate", "--to", tmp_path / "m", "--json").json
    assert pulled == {
        "path": str(tmp_path / "m"),
        "version": 1,
        "digest": trained.answer["digest"],
    }
    script = (
        "import fmoe, sys, torch, fmoe.data\n"
        "x = fmoe.data.load('digits').test.pixels()[:20]\n"
        "model = fmoe.load(sys.argv[1])\n"
        "torch.save({'out': model(x).detach(), 'w': model.gate_weights(x).detach(),"
        " 'n': len(model.experts)}, sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m"), str(tmp_path / "out.pt")], check=True
    )
    fresh = torch.load(tmp_path / "out.pt", weights_only=True)
    settings = config.validate(
        config.parse_yaml((Path(trained.answer["run_dir"]) / "config.yaml").read_text(), "run"),
        "run",
    )
    digits = data.load("digits", val_images=settings.data.val_images)
    model = joint.trained(
        settings,
        Folder.at(trained.answer["run_dir"]),
        digits.identity,
        trained.answer["best_epoch"],
    )
    x = digits.test.pixels()[:20]
    with torch.no_grad():
        torch.testing.assert_close(fresh["out"], model(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(fresh["w"], model.gate_weights(x), atol=1e-5, rtol=0)
    assert fresh["n"] == 3


def test_pull_replaces_a_model_folder_whole(
    trained: Trained, fmoe: Callable[..., Outcome], model_copy: Path
) -> None:
    (model_copy / "config.yaml").write_text("old")
    assert fmoe("pull", "models:/fmoe-digits/1", "--to", model_copy).code == 0
    model_folder.load_model(Folder.at(model_copy))
    assert [path.name for path in model_copy.parent.iterdir()] == ["model"]


def test_predict(trained: Trained, fmoe: Callable[..., Outcome], tmp_path: Path) -> None:
    from PIL import Image

    digits = data.load("digits")
    names = []
    for i in range(3):
        Image.fromarray(digits.test.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
        names.append(tmp_path / f"{i}.png")
    answer = fmoe("predict", trained.answer["run_dir"], *names, "--json").json
    model = library.load(trained.answer["run_dir"])
    with torch.no_grad():
        out = model(digits.test.pixels()[:3])
    for i, prediction in enumerate(answer["predictions"]):
        assert prediction["label"] == str(int(out[i].argmax()))
        assert prediction["probability"] == pytest.approx(out[i].exp().max().item(), abs=1e-5)
        assert sum(prediction["gate_weights"].values()) == pytest.approx(1, abs=1e-5)
        assert list(prediction["gate_weights"]) == ["benign-0", "fgsm-0", "pgd-0"]


def test_a_second_run_takes_its_experts_from_the_store(
    trained: Trained, fmoe: Callable[..., Outcome]
) -> None:
    from tests.integration.conftest import TRAIN

    other = fmoe(
        "train", "digits-whole", "--name=second", "--workers=2", "--json", *TRAIN,
        "--set=gate.temperature=2", "--set=joint.epochs=1", "--register-as=other",
    )  # fmt: skip
    assert other.json["model_uri"] == "models:/other/1"
    assert "0 trained, 3 from the store" in other.err
